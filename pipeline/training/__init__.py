"""Fine-tuning a model on clean and stored adversarial images with Ray Train, on one machine or several."""

from pipeline.training.job import TrainingOutcome, train
from pipeline.training.progress import TrainingProgress
from pipeline.training.recipe import HeldOutSet, Schedule, TrainingData, TrainingRecipe, Workers

__all__ = [
    "HeldOutSet",
    "Schedule",
    "TrainingData",
    "TrainingOutcome",
    "TrainingProgress",
    "TrainingRecipe",
    "Workers",
    "train",
]
