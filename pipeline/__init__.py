"""Transferable adversarial examples as a distributed data pipeline."""

__version__ = "0.1.0"
