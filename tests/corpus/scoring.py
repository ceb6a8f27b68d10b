"""Folders of adversarial images that other tools made."""
