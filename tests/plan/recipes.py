"""Two recipes for tests: a small one, and one with a grid of attacks, an ensemble and defenses."""

from pathlib import Path

from pipeline.plan.recipe import Recipe
from pipeline.plan.recipe_reader import load_recipe

GOOD = """
sources = ["resnet50.tv_in1k"]
targets = ["vgg19_bn.tv_in1k", {model = "inception_v3.tv_in1k", policy = "crop"}]
attacks = ["mi", {attack = "gnp+mi", name = "strong", steps = 20, gnp = {form = "backward", norm = "mean-abs"}}]
[data]
name = "val"
shards = "s3://bucket/val-{0000..0063}.tar"
[budget]
epsilon = "16/255"
"""

GRID = """
sources = [{name = "both", ensemble = ["resnet50.tv_in1k", {model = "vgg19_bn.tv_in1k"}], fuse = "losses"}]
targets = [
  "vgg19_bn.tv_in1k",
  {model = "vgg19_bn.tv_in1k", defense = "bits+jpeg", jpeg = {quality = 50}},
  {model = "vgg19_bn.tv_in1k", defense = "rp", name = "random", defense_seed = 3},
]
[data]
name = "val"
shards = "in/*.tar"
[budget]
epsilon = ["4/255", "8/255"]
steps = [10, 50]
[[attacks]]
attack = "noise"
[[attacks]]
attack = "gnp+mi+di+ti"
gnp = { beta = [0.0, 0.4, 0.8], r = [0.01, 0.1], norm = "mean-abs" }
ti = { kernel = "linear", size = 7 }
[[attacks]]
attack = "ni"
name = "wanting"
epsilon = 3
norm = "l2"
steps = 20
loss = "margin"
target_class = "least-likely"
"""


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return load_recipe(path)
