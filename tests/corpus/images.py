"""Image files whose pixels are easily read wrongly."""
