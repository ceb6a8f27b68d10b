from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from pipeline.attack.draws import Draws
from pipeline.errors import WeightsError
from pipeline.models import registry
from pipeline.models.predict import predict_defended
from pipeline.models.purifier_networks import HgdNetwork, NrpNetwork
from pipeline.models.purifiers import GuidedDenoiser, LoadedPurifier, RepresentationPurifier
from pipeline.models.spec import TargetSpec
from pipeline.storage import Storage
from tests.samples import CLASSES, SIDE

KEYS = ["a", "b"]


def images(side: int = 24) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(2, 3, side, side)


def with_random_weights(network: torch.nn.Module) -> torch.nn.Module:
    """Random weights that keep a part of the image, as trained ones do."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand_like(tensor) * 0.1 + (0.5 if "running_var" in name else 0) - 0.05 * (tensor.dim() > 1)
                )
    return network.eval()


def test_nrp_has_the_published_layers_and_computes_the_published_function() -> None:
    network = with_random_weights(NrpNetwork())
    state = network.state_dict()
    assert len(state) == 2 * (1 + 23 * 3 * 5 + 1)
    assert sum(tensor.numel() for tensor in state.values()) == pytest.approx(16.6e6, rel=0.01)
    assert state["RRDB_trunk.22.RDB3.conv5.weight"].shape == (64, 192, 3, 3)
    assert state["trunk_conv.bias"].shape == (3,)

    def conv(name: str, features: Tensor) -> Tensor:
        return F.conv2d(features, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    out = conv("conv_first", images(8))
    for block in range(23):
        before = out
        for dense in ("RDB1", "RDB2", "RDB3"):
            block_name = f"RRDB_trunk.{block}.{dense}"
            x1 = F.leaky_relu(conv(f"{block_name}.conv1", out), 0.2)
            x2 = F.leaky_relu(conv(f"{block_name}.conv2", torch.cat((out, x1), 1)), 0.2)
            x3 = F.leaky_relu(conv(f"{block_name}.conv3", torch.cat((out, x1, x2), 1)), 0.2)
            x4 = F.leaky_relu(conv(f"{block_name}.conv4", torch.cat((out, x1, x2, x3), 1)), 0.2)
            out = conv(f"{block_name}.conv5", torch.cat((out, x1, x2, x3, x4), 1)) * 0.2 + out
        out = out * 0.2 + before
    torch.testing.assert_close(network(images(8)), conv("trunk_conv", out))


def test_hgd_has_the_published_layers_and_computes_the_published_function() -> None:
    network = with_random_weights(HgdNetwork())
    state = network.state_dict()
    widths, depths = [64, 128, 256, 256, 256], [2, 3, 3, 3, 3]
    assert sum(name.startswith("fwd") and name.endswith("conv.weight") for name in state) == sum(depths)
    assert sum(name.startswith("back") and name.endswith("conv.weight") for name in state) == 11
    assert state["back.0.0.conv.weight"].shape == (64, 192, 3, 3)
    assert state["final.weight"].shape == (3, 64, 1, 1)

    def block(name: str, features: Tensor, stride: int = 1) -> Tensor:
        out = F.conv2d(features, state[f"{name}.conv.weight"], stride=stride, padding=1)
        mean, var = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        return F.batch_norm(out, mean, var, state[f"{name}.bn.weight"], state[f"{name}.bn.bias"]).relu()

    inputs = images(37) * 2 - 1
    out, skips, sides = inputs, [], [37, 19, 10, 5, 3]
    for stage in range(5):
        for number in range(depths[stage]):
            out = block(f"fwd.{stage}.{number}", out, stride=2 if stage and not number else 1)
        assert out.shape[1:] == (widths[stage], sides[stage], sides[stage])
        skips.append(out)
    for stage in (3, 2, 1, 0):
        out = F.interpolate(out, (sides[stage], sides[stage]), mode="bilinear", align_corners=True)
        out = torch.cat((out, skips[stage]), 1)
        for number in range(depths[stage]):
            out = block(f"back.{stage}.{number}", out)
    torch.testing.assert_close(network(inputs), inputs + F.conv2d(out, state["final.weight"]))


def published(kind: str, path: Path) -> Path:
    """A checkpoint as the authors' program writes it."""
    if kind == "nrp":
        torch.save(with_random_weights(NrpNetwork()).state_dict(), path)
        return path
    denoiser = with_random_weights(HgdNetwork()).state_dict()
    prefix = "net.denoise." if kind == "hgd" else "module.net.denoise.0."
    state = {f"{prefix}{name}": tensor for name, tensor in denoiser.items()} | {"net.classif.bias": torch.zeros(3)}
    torch.save({"epoch": 12, "state_dict": state}, path, _use_new_zipfile_serialization=False)
    return path


def target(tiny_checkpoint: Path, defense: str, **purifier: Any) -> TargetSpec:
    return TargetSpec(
        "test_resnet", name="t", checkpoint=str(tiny_checkpoint), input_size=SIDE, defense=defense, **purifier
    )


@pytest.mark.parametrize("kind", ["nrp", "hgd", "hgd of a resnet"])
def test_a_published_checkpoint_defends_a_target_without_the_file(
    kind: str, storage: Storage, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    path = published(kind, tmp_path / "published.ckpt")
    name = kind[:3]
    purifier = (RepresentationPurifier if name == "nrp" else GuidedDenoiser)(str(path))
    spec = target(tiny_checkpoint, f"{name}+bits", **{name: purifier})
    model = registry.resolve_model(spec, storage, classes=CLASSES)
    assert [defense["kind"] for defense in model.identity["defenses"]] == [type(purifier).__name__, "BitDepth"]
    assert str(tmp_path) not in str(model.identity), "the identity does not contain the path"
    path.unlink()
    purified, bits = registry.load_defenses(model, storage, device=torch.device("cpu"))
    assert isinstance(purified, LoadedPurifier)
    network = registry.load_resolved(model, storage, classes=CLASSES, device=torch.device("cpu"))
    found, _ = predict_defended(network, images(), [purified, bits], Draws(0, KEYS))
    expected = with_random_weights(NrpNetwork() if name == "nrp" else HgdNetwork())
    with torch.inference_mode():
        if name == "nrp":
            by_hand = network.classify(network.resized(bits(expected(images()).clamp(0, 1), Draws(0, KEYS))))
        else:  # at the network's input, after the defenses of the image
            inputs = network.resized(bits(images(), Draws(0, KEYS)))
            by_hand = network.classify((expected(inputs * 2 - 1) + 1) / 2)
    torch.testing.assert_close(found, by_hand.softmax(dim=1))


def test_a_changed_checkpoint_changes_the_identity(storage: Storage, tmp_path: Path, tiny_checkpoint: Path) -> None:
    path = published("hgd", tmp_path / "published.ckpt")
    spec = target(tiny_checkpoint, "hgd", hgd=GuidedDenoiser(str(path)))
    first = registry.resolve_model(spec, storage, classes=CLASSES)
    state = torch.load(path, weights_only=True)
    state["state_dict"]["net.denoise.final.weight"] += 1
    torch.save(state, path)
    second = registry.resolve_model(spec, storage, classes=CLASSES)
    assert first.id != second.id
    assert first.weights_sha256 == second.weights_sha256


def test_the_dynamic_noise_is_drawn_per_image_and_clipped() -> None:
    purifier = RepresentationPurifier("NRP.pth", noise=0.05)
    inputs: list[Tensor] = []

    def record(noisy: Tensor) -> Tensor:
        inputs.append(noisy)
        return noisy

    class Recorder(torch.nn.Module):
        forward = staticmethod(record)

    for keys in (KEYS, KEYS[1:]):
        draws = Draws(0, keys)
        draws.begin_step(0)
        LoadedPurifier(purifier, Recorder())(images()[-len(keys) :], draws)
    assert torch.equal(inputs[0][1:], inputs[1])
    assert 0 < float((inputs[0] - images()).abs().max()) <= 16 / 255 + 1e-6


def test_a_checkpoint_other_than_the_published_one_is_refused_by_name(
    storage: Storage, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    nrp, hgd = RepresentationPurifier, GuidedDenoiser
    for purifier, message in (
        (nrp(str(other)), r"other\.safetensors: does not fit .* 694 missing keys .* wanted is NRP\.pth, of"),
        (hgd(str(other)), r"other\.safetensors: does not fit .* wanted is denoise_incepv3_012\.ckpt, of"),
        (nrp(str(tmp_path / "missing.pth")), r"checkpoint .*missing\.pth: no such object; wanted is NRP\.pth, of"),
        (hgd(str(tmp_path)), r"checkpoint .*; wanted is denoise"),
    ):
        name = "nrp" if isinstance(purifier, nrp) else "hgd"
        with pytest.raises(WeightsError, match=message):
            registry.resolve_model(target(tiny_checkpoint, name, **{name: purifier}), storage, classes=CLASSES)
