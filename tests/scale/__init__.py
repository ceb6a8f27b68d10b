"""`make scale`: time, memory and requests at scale."""
