"""Models that are another function than their weights say, torchvision's own weights, and constructors' arguments."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from torch import nn
from torchvision.models import get_model

from pipeline.models import registry
from pipeline.models.load import load_model
from pipeline.models.spec import ModelSpec, require_model_exists
from pipeline.models.state_search import find_weights
from pipeline.models.torchvision_models import library_weights
from pipeline.plan.recipe_reader import load_recipe
from pipeline.storage import Storage, sha256
from tests.corpus.cases import Refusal, case
from tests.corpus.checkpoints import KIND, register, saved, state
from tests.samples import CLASSES, write_recipe


def same_function(folder: Path, spec: ModelSpec, network: nn.Module, classes: int = CLASSES) -> bool:
    """Whether a recipe's model computes what a network does, loaded by name and again by its record in a store."""
    store = Storage(str(folder / "store"), create=True)
    model = registry.resolve_model(spec, store, classes=classes)
    stored = registry.load_unoptimized(model, store, classes=classes)
    mean, std = (torch.tensor(stored.preprocessing[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    images = torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.inference_mode():
        found, expected = stored.classify(images), network.eval()((images - mean) / std)
    return bool(torch.allclose(found, expected, rtol=1e-4, atol=1e-5))


@functools.cache
def googlenet() -> tuple[bytes, nn.Module]:
    """A file with auxiliary heads, as torchvision's own is, and the network as the library would set it up for it."""
    torch.manual_seed(0)
    built = get_model("googlenet", num_classes=CLASSES, init_weights=False, transform_input=True)
    return saved(built.state_dict()), built


def _googlenet_spec(folder: Path, **settings: Any) -> ModelSpec:
    (folder / "googlenet.pth").write_bytes(googlenet()[0])
    statistics = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    return ModelSpec(
        *("torchvision/googlenet", "net", str(folder / "googlenet.pth")),
        **{"input_size": 64, "mean": statistics[0], "std": statistics[1], **settings},
    )


@case(KIND, "a googlenet that may renormalise its input", Refusal("net: set args = { transform_input = true } if the"))
def _(folder: Path) -> object:
    return load_model(_googlenet_spec(folder), classes=CLASSES)


@case(KIND, "a googlenet that renormalises its input, with auxiliary heads", True)
def _(folder: Path) -> object:
    return same_function(folder, _googlenet_spec(folder, args={"transform_input": True}), googlenet()[1])


@case(KIND, "torchvision's own file of a googlenet", {"transform_input": True})
def _(folder: Path) -> object:
    spec = _googlenet_spec(folder)
    url = f"https://host/googlenet-{sha256(googlenet()[0])[:8]}.pth"
    with mock.patch.object(library_weights("googlenet")["IMAGENET1K_V1"].value, "url", url):
        return load_model(spec, classes=CLASSES).args


@case(KIND, "torchvision's googlenet by name", ({"transform_input": True}, True))
def _(folder: Path) -> object:
    spec = ModelSpec("torchvision/googlenet.IMAGENET1K_V1", input_size=64)
    with cached_by_torch(folder, spec, get_model("googlenet", init_weights=False)):
        model = load_model(spec)
        return model.args, model.network.transform_input


@contextlib.contextmanager
def cached_by_torch(folder: Path, spec: ModelSpec, network: nn.Module) -> Iterator[None]:
    """Within this context, torch's hub cache holds made-up weights in the place of the library's own."""
    architecture, _, weights = spec.model.removeprefix("torchvision/").partition(".")
    file = folder / "hub" / "checkpoints" / library_weights(architecture)[weights].url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    with mock.patch.dict(os.environ, {"TORCH_HOME": str(folder)}):
        yield


for _name in ("squeezenet1_1", "mnasnet0_5", "shufflenet_v2_x0_5"):

    @case(KIND, f"torchvision's {_name} by name", (True, (224, "bilinear", 0.485)))
    def _(folder: Path, name: str = _name) -> object:
        torch.manual_seed(0)
        network = get_model(name)
        spec = ModelSpec(f"torchvision/{name}.IMAGENET1K_V1")
        with cached_by_torch(folder, spec, network):
            own = load_model(spec).preprocessing
            return same_function(folder, spec, network, 1000), (own["input_size"], own["interpolation"], own["mean"][0])


@case(KIND, "torchvision's weights by name, preprocessed in another way", (160, "bicubic", [0.5] * 3))
def _(folder: Path) -> object:
    spec = ModelSpec(
        "torchvision/squeezenet1_1.IMAGENET1K_V1", input_size=160, interpolation="bicubic", mean=(0.5,) * 3
    )
    with cached_by_torch(folder, spec, get_model("squeezenet1_1")):
        own = load_model(spec).preprocessing
    return own["input_size"], own["interpolation"], own["mean"]


@case(KIND, "torchvision's weights without a network", Refusal("squeezenet1_1-b8a52dc0.pth: these .*TORCH_HOME"))
def _(folder: Path) -> object:
    offline = mock.patch("torch.hub.download_url_to_file", side_effect=OSError("no network"))
    with offline, mock.patch.dict(os.environ, {"TORCH_HOME": str(folder)}):
        return load_model(ModelSpec("torchvision/squeezenet1_1.IMAGENET1K_V1"))


@case(KIND, "the former names of torchvision's densenets and vision transformers", True)
def _(folder: Path) -> object:
    del folder
    ones = torch.ones(1)
    former = {"f.denselayer1.norm.1.weight": ones, "e.mlp.linear_1.bias": ones, "e.mlp.linear_2.bias": ones}
    present = {"f.denselayer1.norm1.weight": ones, "e.mlp.0.bias": ones, "e.mlp.3.bias": ones}
    return find_weights(former, present, choice="", checkpoint="x.pth", architecture="x").fits


for _name, _model, _line in (
    (
        "unknown weights of torchvision",
        "resnet50.IMAGENET1K_V3",
        "no resnet50 of 'IMAGENET1K_V3'; did you mean IMAGENET1K_V",
    ),
    (
        "torchvision's moving weights",
        "resnet50.DEFAULT",
        "no resnet50 of 'DEFAULT', which would move; it has IMAGENET1K_V1, ",
    ),
    ("weights of a detector", "fasterrcnn_resnet50_fpn.COCO_V1", "unknown torchvision architecture"),
    ("an architecture without weights", "resnet18", "needs a checkpoint, or .*: torchvision/resnet18.IMAGENET1K_V1"),
):

    @case(KIND, _name, Refusal(_line))
    def _(folder: Path, model: str = _model) -> object:
        del folder
        require_model_exists(ModelSpec(f"torchvision/{model}"))
        return "accepted"


@case(KIND, "timm's arguments that no state dict holds", True)
def _(folder: Path) -> object:
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=CLASSES, bn_eps=0.1, pad_type="same")
    (folder / "weights").write_bytes(saved(network.state_dict()))
    args: dict[str, float | str] = {"bn_eps": 0.1, "pad_type": "same"}
    spec = ModelSpec("test_efficientnet", checkpoint=str(folder / "weights"), input_size=64, args=args)
    return same_function(folder, spec, network)


for _name, _args, _line in (
    (
        "an unknown argument",
        {"bn_epsilon": 0.1},
        r"tiny: args = {'bn_epsilon': 0.1}: test_resnet refuses \(.*bn_epsilon",
    ),
    (
        "an argument of a wrong type",
        {"act_layer": "nobody"},
        r"tiny: args = {'act_layer': 'nobody'}: test_resnet refuses",
    ),
    (
        "a quoted false",
        {"transform_input": "false"},
        "args = { transform_input = 'false' }: write true or false, a number",
    ),
    ("an argument of NaN", {"bn_eps": float("nan")}, "args = { bn_eps = nan }: write"),
    (
        "an argument with a key of its own",
        {"num_classes": 5},
        "args = { num_classes = … }: not an argument to set here",
    ),
):
    register(_name, Refusal(_line), state, args=_args)


@case(KIND, "arguments in a recipe", {"transform_input": True, "dropout": 0.5})
def _(folder: Path) -> object:
    recipe = write_recipe(folder, folder / "x.pth")
    model = 'model = "torchvision/googlenet"\nargs = { transform_input = true, dropout = 0.5 }\n'
    own = f"{model}mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n"
    recipe.write_text(recipe.read_text().replace('model = "test_resnet"\n', own))
    return load_recipe(recipe).job().targets[0].args


register(
    "an input size that the network does not take",
    Refusal(r"tiny: cannot classify an image of 7 x 7 \(.*\); see input_size and args"),
    lambda: dict(timm.create_model("test_vit", num_classes=CLASSES).state_dict()),
    model="test_vit",
    input_size=7,
)
