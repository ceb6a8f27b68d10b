"""The command line `gnp`, and the programs of the demo and the docs; the work itself is done by `pipeline`."""
