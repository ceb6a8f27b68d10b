"""Input and stored images: WebDataset shards, samples, decoding and encoding of pixels, stored parts."""
