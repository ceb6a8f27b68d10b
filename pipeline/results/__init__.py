"""Stored predictions: their Parquet schemas, how they are read, and confidence intervals."""
