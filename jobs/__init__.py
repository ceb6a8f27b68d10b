"""Programs over the pipeline: load a recipe, call one function, return an exit code."""
