"""Attacks that compose: a gradient function, transforms around it, and the loop that follows it.

attack = build("gnp+mi", source=model, epsilon=16 / 255)
adversarial = attack(images, labels)
"""

from pipeline.attack.bound import Bound, build

__all__ = ["Bound", "build"]
