"""`python -m jobs` is the same program as `gnp`."""

from jobs.cli import main

main()
