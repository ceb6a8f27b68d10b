"""Terminals, temporary folders, stores and credentials that are not as usual."""
