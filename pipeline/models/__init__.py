"""Source and target models: loading, preprocessing, CPU fusion, defenses, predictions."""
