"""Work on a store after a run: verify, finalize, garbage collection, status."""
