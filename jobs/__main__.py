"""`python -m jobs` is `gnp`; `python -m jobs benchmark` also runs where neither Ray nor typer is installed."""

import sys

if sys.argv[1:2] == ["benchmark"]:
    from jobs.runners import benchmark

    sys.exit(benchmark.main(sys.argv[2:]))

from jobs.cli import main

main()
