"""Shards that other tools made."""
