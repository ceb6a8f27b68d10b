"""Adversarial attacks on tensors: a gradient function, transforms around it, and the loop that follows it.

attack = build("gnp+mi", source=model, epsilon=16 / 255)
adversarial = attack(images, labels)
"""

from pipeline.attack.bound_attack import BoundAttack, build

__all__ = ["BoundAttack", "build"]
