"""Fine-tuning a model on clean and stored adversarial images, on one machine or many; Ray Train runs it."""

from pipeline.training.job import Outcome, train
from pipeline.training.lesson import Data, HeldOut, Lesson, Schedule, Workers
from pipeline.training.progress import Progress

__all__ = ["Data", "HeldOut", "Lesson", "Outcome", "Progress", "Schedule", "Workers", "train"]
