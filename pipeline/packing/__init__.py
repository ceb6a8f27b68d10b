"""Packing: folders, tables of labels and Parquet files that people have, written as WebDataset shards."""
