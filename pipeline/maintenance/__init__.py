"""What happens to a store after a run: verify, finalize, garbage collection, status."""
