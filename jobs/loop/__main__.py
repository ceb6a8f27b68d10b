"""`python -m jobs.loop`; apart from the loop itself, since child processes cannot import a `__main__` module."""

from jobs.exit_codes import run_and_exit
from jobs.loop.closed_loop import main

if __name__ == "__main__":
    run_and_exit(main)
