"""The library's public calls, and an attack on plain tensors."""

import subprocess
import sys
import tomllib
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline import Recipe, attack, dataset, generate
from pipeline.analysis import report
from pipeline.attack import recipe
from pipeline.attack.gradient_norm_penalty import GradientNormPenalty
from pipeline.errors import RecipeError
from tests.conftest import ROOT
from tests.samples import sample, write_recipe, write_shard

EPSILON = 16 / 255


@pytest.fixture
def source() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 1, 2])


def test_an_attack_works_on_plain_tensors(source: nn.Module, images: Tensor) -> None:
    bound = attack.build("gnp+mi", source=source, epsilon=EPSILON)
    adversarial = bound(images, LABELS)
    assert adversarial.shape == images.shape
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert 0 < (adversarial - images).abs().max() <= EPSILON + 1e-6
    assert nn.functional.cross_entropy(source(adversarial), LABELS) > nn.functional.cross_entropy(
        source(images), LABELS
    )


def test_a_built_attack_equals_that_of_a_recipe(source: nn.Module, images: Tensor) -> None:
    parts = {"gnp": GradientNormPenalty(form="backward", norm="mean-abs")}
    bound = attack.build("gnp+mi+di", source=source, epsilon=EPSILON, steps=3, step_size=2 / 255, parts=parts)
    plain = recipe.build("gnp+mi+di", epsilon=Fraction(16, 255), steps=3, step_size=Fraction(2, 255), parts=parts)
    assert bound.attack == plain
    keys = ["a", "b", "c"]
    assert torch.equal(bound(images, LABELS, keys=keys), plain(source, images, LABELS, keys))


def test_epsilon_accepts_a_float_a_text_or_a_fraction(source: nn.Module) -> None:
    built = {attack.build("mi", source, epsilon=epsilon).attack for epsilon in (EPSILON, "16/255", Fraction(16, 255))}
    assert len(built) == 1


def test_a_targeted_attack_raises_the_target_class(source: nn.Module, images: Tensor) -> None:
    bound = attack.build("mi", source=source, epsilon=EPSILON, target_class="shard")
    target_classes = torch.tensor([3, 4, 0])
    adversarial = bound(images, LABELS, target_classes=target_classes)
    before, after = (
        source(inputs).log_softmax(1).gather(1, target_classes.view(-1, 1)) for inputs in (images, adversarial)
    )
    assert (after > before).all()


@pytest.mark.usefixtures("ray_on_four_devices")  # another Ray would disturb other tests in this process
def test_the_main_job_and_its_results_are_a_few_calls(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(3)])
    path, store = write_recipe(tmp_path, tiny_checkpoint), str(tmp_path / "store")
    outcome = generate(path, store)
    assert (outcome.made.images, outcome.failed) == (3, {})
    (row,) = report.of(store).success
    assert (row.attack, row.rates["all"].n) == ("i", 3)
    assert dataset.open(store).results().num_rows == 3
    again = generate(Recipe.model_validate(tomllib.loads(path.read_text())), store, limit=2)
    assert again.made.images == 2, "another set of images"
    with pytest.raises(RecipeError, match="nobody"):
        generate(tmp_path / "nobody.toml", store)


def test_importing_the_attack_imports_neither_ray_nor_storage() -> None:
    code = "import sys\nfrom pipeline import attack\nattack.build\n"
    code += "assert not {'ray', 'obstore', 'boto3', 'pyarrow', 'pydantic', 'timm'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
