"""Implementations of the longer commands, and the benchmark; these modules import torch or Ray."""
