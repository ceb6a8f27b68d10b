"""Reading results: reports, comparisons, ablations, curvature, loss landscapes, figures, the HTML page."""
