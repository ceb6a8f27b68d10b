"""A recipe on real photographs and weights, `gnp` in a process of its own, and a store that it has filled."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

RECIPE = """
batch_size = 4
[data]
name = "photographs"
shards = "{assets}/shards/photographs-*.tar"
part_size = 3
[budget]
epsilon = "8/255"
steps = 2
[[sources]]
model = "tf_efficientnet_lite0"
name = "lite0"
checkpoint = "{assets}/weights/lite0.safetensors"
[[attacks]]
attack = "noise"
[[attacks]]
attack = "gnp+mi"
gnp = {{ form = "backward", norm = "mean-abs" }}
[[targets]]
model = "tf_efficientnet_lite1"
name = "lite1"
checkpoint = "{assets}/weights/lite1.safetensors"
[[targets]]
model = "tf_efficientnet_lite2"
name = "lite2"
checkpoint = "{assets}/weights/lite2.safetensors"
policy = "crop"
[[targets]]
model = "torchvision/squeezenet1_1"
name = "squeezenet"
checkpoint = "{assets}/weights/squeezenet.safetensors"
input_size = 224
interpolation = "bilinear"
mean = [0.48501961, 0.45795686, 0.40760392]
std = [0.00392157, 0.00392157, 0.00392157]
[engine]
generators = 1
scorers = 1
"""
IMAGES = 12  # the limit: the first shard's ten and two of the second


@dataclass(frozen=True)
class Journey:
    """A store that `gnp generate` has filled, and its output."""

    recipe: Path
    store: str
    output: str

    def gnp(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return gnp(*arguments)

    def listed(self, kind: str) -> list[str]:
        done = gnp("ls", self.store, "--kind", kind)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def generate(self) -> subprocess.CompletedProcess[str]:
        return gnp("generate", str(self.recipe), "--store", self.store, "--limit", str(IMAGES))


def gnp(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
