"""`make demo`: real photographs and weights through the main job."""

from pathlib import Path

FOLDER = Path("build/demo")
RECIPE = Path(__file__).parents[1] / "recipes" / "demo.toml"
