"""`make scale`: time, memory and requests at scale; a program, not a test: `python -m tests.scale --only a`.

    a    resuming a plan with a million markers on a real S3 server, without and with its index: time, memory, requests
    b    a shard of 5 GB of large photographs through both stages: peak memory of the process
    c    the driver's memory after 1,000, 10,000 and 100,000 items, with a real Ray and workers that do nothing

Each row measures a separate process, including imports, and adds its figures to build/scale.json.
"""

import json
import resource
import sys
from typing import Literal

import typer
from rich.console import Console
from rich.table import Table

from tests.scale.driver import row_c
from tests.scale.large_shard import row_b
from tests.scale.processes import ROOT
from tests.scale.resuming import row_a

OUT = ROOT / "build" / "scale.json"


def main(only: Literal["", "a", "b", "c"] = "") -> None:
    """Measures the rows, prints them and writes them to build/scale.json."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    console, ok = Console(), True
    for name, row in (("a", row_a), ("b", row_b), ("c", row_c)):
        if only not in ("", name):
            continue
        found = row()
        ok = ok and found["ok"]
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps((json.loads(OUT.read_text()) if OUT.exists() else {}) | {name: found}, indent=1))
        table = Table("figure", "value", title=f"row {name}")
        for key, value in found.items():
            lines = value if isinstance(value, list) else [value]
            for line in lines:
                table.add_row(key, json.dumps(line))
        console.print(table)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    typer.run(main)
