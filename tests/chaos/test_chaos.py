import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A short campaign: one scenario of each kind, on fewer shards.
FAULTS = ["both", "driver", "lost-response", "flip", "poison"]


@pytest.mark.journey
@pytest.mark.timeout(900)
def test_a_small_campaign_finds_nothing_lost_twice_or_wrong(tmp_path: Path) -> None:
    # In its own process: it starts a Ray cluster and an S3 server, and kills them.
    command = [sys.executable, "-m", "tests.chaos.campaign", "--folder", str(tmp_path), "--seed", "1"]
    command += ["--scale", "0.1", "--shards", "3", "--only", *FAULTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "campaign.json").read_text())["rows"]
    assert len(rows) == len(FAULTS)
    for row in rows:
        assert row["injected"] > 0, row
        assert row["damage"] == {"lost": 0, "twice": 0, "wrong": 0}, row
    assert "tried 3 times, listed 1" in rows[-1]["note"]
    assert "exit code 1" in rows[-1]["note"]
