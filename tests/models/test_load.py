from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.attack.ensemble import Ensemble
from pipeline.attack.input_transforms import DiverseInput
from pipeline.attack.recipe import build
from pipeline.errors import RecipeError, WeightsError
from pipeline.models.class_names import class_name, imagenet_synsets
from pipeline.models.classifier import Classifier, resize
from pipeline.models.load import load_model
from pipeline.models.spec import ModelSpec, TargetSpec, require_model_exists
from pipeline.models.trial import require_enlarged_input
from tests.samples import CLASSES


def tiny(checkpoint: Path, **settings: object) -> ModelSpec:
    return ModelSpec("test_resnet", name="tiny", checkpoint=str(checkpoint), **settings)  # type: ignore[arg-type]


def pil_resize(images: torch.Tensor, side: int, resampling: Image.Resampling) -> torch.Tensor:
    """PIL's resize of float images, channel by channel."""
    planes = [Image.fromarray(plane.numpy(), mode="F").resize((side, side), resampling) for plane in images[0]]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes]))[None]


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("side", [160, 224, 240, 299, 331])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_equals_pils(side: int, interpolation: str) -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 224, 224)
    found = resize(images, policy="direct", input_size=side, interpolation=interpolation)
    expected = pil_resize(images, side, Image.Resampling[interpolation.upper()])
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)  # 0.01 of a grey level: float32 weights


def test_the_crop_policy_discards_the_border() -> None:
    images = torch.zeros(1, 3, 224, 224)
    images[..., :12, :] = 1
    found = resize(images, policy="crop", input_size=299, interpolation="bilinear")
    assert found.shape == (1, 3, 299, 299)
    assert float(found.abs().max()) < 1e-6
    direct = resize(images, policy="direct", input_size=299, interpolation="bilinear")
    assert float(direct.max()) == pytest.approx(1)


def test_a_classifier_takes_images_in_zero_to_one_and_normalises_them(tiny_checkpoint: Path) -> None:
    spec = tiny(tiny_checkpoint, input_size=32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    classifier = load_model(spec, classes=CLASSES)
    network = timm.create_model("test_resnet", num_classes=CLASSES).eval()
    network.load_state_dict(load_file(tiny_checkpoint))
    images = torch.rand(2, 3, 32, 32)
    normalised = (images - torch.tensor(spec.mean).view(1, 3, 1, 1)) / torch.tensor(spec.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(classifier(images), network(normalised), atol=1e-5, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    assert not classifier.training


def test_the_digest_depends_on_the_weights_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    digest = load_model(tiny(tiny_checkpoint), classes=CLASSES).digest
    state = load_file(tiny_checkpoint)
    torch.save({"state_dict": state}, tmp_path / "same.pth")
    assert load_model(tiny(tmp_path / "same.pth"), classes=CLASSES).digest == digest
    state["fc.bias"][0] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    assert load_model(tiny(tmp_path / "other.safetensors"), classes=CLASSES).digest != digest


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("resnet50.tv_in1kk"), r"did you mean resnet50\.tv_in1k"),
        (ModelSpec("resnet50"), r"names an architecture.*one of .*resnet50\.tv_in1k"),
        (ModelSpec("tf_efficientnet_lite0", checkpoint=None), "names its weights|name its weights"),
        (ModelSpec("resnet5000", checkpoint="x.pth"), "unknown timm architecture.*did you mean"),
        (ModelSpec("torchvision/squeezenet1_2", checkpoint="x.pth"), "did you mean squeezenet1_"),
        (ModelSpec("torchvision/squeezenet1_1"), "needs a checkpoint, or .*: torchvision/squeezenet1_1.IMAGENET1K_V1"),
        (ModelSpec("torchvision/squeezenet1_1", checkpoint="x.pth"), "needs input_size, mean and std"),
    ],
)
def test_an_unknown_model_is_refused_with_suggestions(spec: ModelSpec, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        require_model_exists(spec)


@pytest.mark.parametrize(
    "tag",
    [
        *("resnet50.tv_in1k", "vgg19_bn.tv_in1k", "resnet152.tv_in1k", "inception_v3.tv_in1k", "densenet121.tv_in1k"),
        *("mobilenetv2_100.ra_in1k", "legacy_senet154.in1k", "resnext101_32x8d.tv_in1k", "wide_resnet101_2.tv_in1k"),
        *("pnasnet5large.tf_in1k", "mnasnet_100.rmsp_in1k", "inception_v3.tf_adv_in1k"),
    ],
)
def test_the_papers_models_exist_under_their_tags(tag: str) -> None:
    require_model_exists(ModelSpec(tag))


def test_class_names_are_those_of_imagenet() -> None:
    info = timm.data.ImageNetInfo()
    assert [class_name(index) for index in range(1000)] == info.label_descriptions()
    assert list(imagenet_synsets()) == info.label_names()
    assert class_name(5000) == "5000"


def test_random_padding_is_refused_for_a_network_of_one_input_size(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=CLASSES).state_dict(), path)
    plain = TargetSpec("test_vit", name="vit", checkpoint=str(path))
    load_model(plain, classes=CLASSES)
    with pytest.raises(WeightsError, match="vit: the network does not take the input sizes of rp"):
        load_model(replace(plain, defense="bits+rp"), classes=CLASSES)


def test_diverse_input_without_resizing_back_enlarges_the_networks_input(tiny_checkpoint: Path) -> None:
    classifier = load_model(tiny(tiny_checkpoint, input_size=32), classes=CLASSES)
    input_shapes: list[tuple[int, ...]] = []
    classifier.network.register_forward_pre_hook(lambda _, inputs: input_shapes.append(tuple(inputs[0].shape)))
    parts = {"di": DiverseInput(variant="no-resize-back", rate=1.25)}
    attack = build("i+di", epsilon=Fraction(8, 255), steps=1, parts=parts)
    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    for source in (classifier, Ensemble([classifier, classifier])):
        input_shapes.clear()
        attack(source, images, labels, ["a", "b"])
        assert set(input_shapes) == {(2, 3, 40, 40)}
    input_shapes.clear()
    attack(classifier, torch.rand(2, 3, 48, 48), labels, ["a", "b"])
    assert input_shapes == [(2, 3, 40, 40)], (
        "an image of another size is resized to the network's input size, enlarged by the rate"
    )


def test_enlarged_input_is_refused_for_a_network_of_one_input_size(tiny_checkpoint: Path) -> None:
    require_enlarged_input("tiny", load_model(tiny(tiny_checkpoint), classes=CLASSES), 1.1)
    vit = Classifier(
        timm.create_model("test_vit", num_classes=CLASSES, dynamic_img_size=False),
        {"policy": "direct", "input_size": 160, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3},
    )
    with pytest.raises(WeightsError, match=r'vit: takes only images of 160 x 160.*set variant = "resize-back"'):
        require_enlarged_input("vit", vit, 1.1)
