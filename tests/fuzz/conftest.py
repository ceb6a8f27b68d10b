import tempfile
from collections.abc import Iterator

import pytest

from pipeline.ledger import Ledger
from pipeline.storage import Storage
from tests.fuzz.fuzzing import scratch


@pytest.fixture(scope="module")
def ledger() -> Iterator[Ledger]:
    """An empty store in a temporary folder."""
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        yield Ledger(Storage(folder))
