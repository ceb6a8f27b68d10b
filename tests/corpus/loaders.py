"""Loaders of training examples, and stores, as Python callers ask for them."""
