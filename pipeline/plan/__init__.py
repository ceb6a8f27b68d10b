"""What a run has to compute: recipe, resolved models, work items, forecasts, worker pools."""
