"""Attacks that compose: a gradient function, transforms around it, and the loop that follows it."""
