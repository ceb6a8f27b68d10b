"""Calls from Python with what people have at hand."""
