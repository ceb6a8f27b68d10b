"""`python -m jobs` is `gnp`; benchmark and gpu-check also run where neither Ray nor typer is installed."""

import sys

if sys.argv[1:2] == ["benchmark"]:
    from jobs.runners import benchmark

    sys.exit(benchmark.main(sys.argv[2:]))
if sys.argv[1:2] == ["gpu-check"]:
    from jobs.gpu_check import check

    sys.exit(check.main(sys.argv[2:]))

from jobs.cli import main

main()
