"""`python -m tests.corpus [TEXT]`: runs the cases whose name contains the text, and prints the table of outcomes."""

import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.corpus import test_corpus
from tests.corpus.cases import CASES, judge


def main(text: str = "") -> int:
    """Runs the cases; returns 1 if an outcome is not the expected one."""
    assert test_corpus.MODULES
    kinds: Counter[str] = Counter()
    faults = 0
    for identity, one in CASES.items():
        if text not in identity:
            continue
        with tempfile.TemporaryDirectory(prefix="gnp-") as folder:
            verdict = judge(one, Path(folder))
            outcome = verdict.outcome.replace(folder, "…")
        kinds[one.kind] += 1
        faults += bool(verdict.fault)
        right = "WRONG" if verdict.fault else "right"
        sys.stdout.write(f"{right}  {identity}  ({verdict.seconds:.1f} s)\n       {outcome[:300]}\n")
        if verdict.fault:
            sys.stdout.write(f"       {verdict.fault}\n")
    by_kind = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    sys.stdout.write(f"{sum(kinds.values())} inputs ({by_kind}): {faults} wrong\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
