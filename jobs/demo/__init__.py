"""`make demo`: runs `gnp generate` on real photographs and weights."""

from pathlib import Path

FOLDER = Path("build/demo")
RECIPE = Path(__file__).parents[1] / "recipes" / "demo.toml"
