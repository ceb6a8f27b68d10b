"""`python -m jobs` is the same program as `gnp`; its benchmark runs where neither Ray nor typer is installed."""

import sys

if sys.argv[1:2] == ["benchmark"]:
    from jobs.commands import benchmark

    sys.exit(benchmark.main(sys.argv[2:]))

from jobs.cli import main

main()
