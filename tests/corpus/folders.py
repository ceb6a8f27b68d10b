"""Folders of images, and tables of labels, that people pack with `gnp shards`."""
