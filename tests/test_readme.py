import dataclasses
import re
from typing import Any

import pytest

from pipeline.attack.recipe import BASES, TRANSFORMS, VIEWS
from pipeline.models.defenses import DEFENSES
from tests.conftest import ROOT

ROWS = {
    name: row
    for row in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    if row.startswith("| `")
    for name in re.findall(r"`([^`]+)`", row.split("|")[1])
}


@pytest.mark.parametrize("name", [*VIEWS, *TRANSFORMS, *DEFENSES])
def test_the_readme_tells_every_setting_and_its_default(name: str) -> None:
    told = ROWS[name].split("|")[3]
    kinds: dict[str, Any] = {**VIEWS, **TRANSFORMS, **DEFENSES}
    for field in dataclasses.fields(kinds[name]):
        default = field.default
        shown = (
            f'"{default}"'
            if isinstance(default, str)
            else f"{default:.3g}"
            if isinstance(default, float)
            else str(default)
        )
        assert re.search(rf"`{field.name} = {re.escape(shown)}0*(?![0-9])", told), f"{field.name} = {shown}"


def test_the_readme_names_every_base() -> None:
    assert set(BASES) <= set(ROWS)
    assert "noise" in ROWS
