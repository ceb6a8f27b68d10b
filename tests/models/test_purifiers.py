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
from pipeline.models.defenses import answer
from pipeline.models.load import TargetSpec
from pipeline.models.purifiers import DenoiserNetwork, GuidedDenoiser, Purified, PurifierNetwork, RepresentationPurifier
from pipeline.storage import Storage
from tests.samples import CLASSES, SIDE

KEYS = ["a", "b"]


def images(side: int = 24) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(2, 3, side, side)


def seeded(network: torch.nn.Module) -> torch.nn.Module:
    """Weights that leave something of the image, as trained ones do."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand_like(tensor) * 0.1 + (0.5 if "running_var" in name else 0) - 0.05 * (tensor.dim() > 1)
                )
    return network.eval()


def test_nrp_has_the_published_layers_and_computes_what_they_say() -> None:
    network = seeded(PurifierNetwork())
    state = network.state_dict()
    assert len(state) == 2 * (1 + 23 * 3 * 5 + 1)
    assert sum(tensor.numel() for tensor in state.values()) == pytest.approx(16.6e6, rel=0.01)
    assert state["RRDB_trunk.22.RDB3.conv5.weight"].shape == (64, 192, 3, 3)
    assert state["trunk_conv.bias"].shape == (3,)

    def conv(name: str, seen: Tensor) -> Tensor:
        return F.conv2d(seen, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    out = conv("conv_first", images(8))
    for block in range(23):
        before = out
        for dense in ("RDB1", "RDB2", "RDB3"):
            at = f"RRDB_trunk.{block}.{dense}"
            x1 = F.leaky_relu(conv(f"{at}.conv1", out), 0.2)
            x2 = F.leaky_relu(conv(f"{at}.conv2", torch.cat((out, x1), 1)), 0.2)
            x3 = F.leaky_relu(conv(f"{at}.conv3", torch.cat((out, x1, x2), 1)), 0.2)
            x4 = F.leaky_relu(conv(f"{at}.conv4", torch.cat((out, x1, x2, x3), 1)), 0.2)
            out = conv(f"{at}.conv5", torch.cat((out, x1, x2, x3, x4), 1)) * 0.2 + out
        out = out * 0.2 + before
    torch.testing.assert_close(network(images(8)), conv("trunk_conv", out))


def test_hgd_has_the_published_layers_and_computes_what_they_say() -> None:
    network = seeded(DenoiserNetwork())
    state = network.state_dict()
    widths, depths = [64, 128, 256, 256, 256], [2, 3, 3, 3, 3]
    assert sum(name.startswith("fwd") and name.endswith("conv.weight") for name in state) == sum(depths)
    assert sum(name.startswith("back") and name.endswith("conv.weight") for name in state) == 11
    assert state["back.0.0.conv.weight"].shape == (64, 192, 3, 3)
    assert state["final.weight"].shape == (3, 64, 1, 1)

    def block(at: str, seen: Tensor, stride: int = 1) -> Tensor:
        out = F.conv2d(seen, state[f"{at}.conv.weight"], stride=stride, padding=1)
        mean, var = state[f"{at}.bn.running_mean"], state[f"{at}.bn.running_var"]
        return F.batch_norm(out, mean, var, state[f"{at}.bn.weight"], state[f"{at}.bn.bias"]).relu()

    seen = images(37) * 2 - 1
    out, kept, sides = seen, [], [37, 19, 10, 5, 3]
    for stage in range(5):
        for number in range(depths[stage]):
            out = block(f"fwd.{stage}.{number}", out, stride=2 if stage and not number else 1)
        assert out.shape[1:] == (widths[stage], sides[stage], sides[stage])
        kept.append(out)
    for stage in (3, 2, 1, 0):
        out = F.interpolate(out, (sides[stage], sides[stage]), mode="bilinear", align_corners=True)
        out = torch.cat((out, kept[stage]), 1)
        for number in range(depths[stage]):
            out = block(f"back.{stage}.{number}", out)
    torch.testing.assert_close(network(seen), seen + F.conv2d(out, state["final.weight"]))


def published(kind: str, path: Path) -> Path:
    """A checkpoint as its authors' program writes it."""
    if kind == "nrp":
        torch.save(seeded(PurifierNetwork()).state_dict(), path)
        return path
    own = seeded(DenoiserNetwork()).state_dict()
    prefix = "net.denoise." if kind == "hgd" else "module.net.denoise.0."
    state = {f"{prefix}{name}": tensor for name, tensor in own.items()} | {"net.classif.bias": torch.zeros(3)}
    torch.save({"epoch": 12, "state_dict": state}, path, _use_new_zipfile_serialization=False)
    return path


def target(tiny_checkpoint: Path, defense: str, **purifier: Any) -> TargetSpec:
    return TargetSpec(
        "test_resnet", name="t", checkpoint=str(tiny_checkpoint), input_size=SIDE, defense=defense, **purifier
    )


@pytest.mark.parametrize("kind", ["nrp", "hgd", "hgd of a resnet"])
def test_a_published_checkpoint_guards_a_target_from_the_store_alone(
    kind: str, storage: Storage, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    path = published(kind, tmp_path / "theirs.ckpt")
    name = kind[:3]
    purifier = (RepresentationPurifier if name == "nrp" else GuidedDenoiser)(str(path))
    spec = target(tiny_checkpoint, f"{name}+bits", **{name: purifier})
    model = registry.resolve(spec, storage, classes=CLASSES)
    assert [each["kind"] for each in model.identity["defenses"]] == [type(purifier).__name__, "BitDepth"]
    assert str(tmp_path) not in str(model.identity), "what it is does not depend on where it lay"
    path.unlink()
    purified, bits = registry.load_defenses(model, storage, device=torch.device("cpu"))
    assert isinstance(purified, Purified)
    network = registry.load(model, storage, classes=CLASSES, device=torch.device("cpu"))
    found, _ = answer(network, images(), [purified, bits], Draws(0, KEYS))
    theirs = seeded(PurifierNetwork() if name == "nrp" else DenoiserNetwork())
    with torch.inference_mode():
        if name == "nrp":
            by_hand = network.classify(network.resized(bits(theirs(images()).clamp(0, 1), Draws(0, KEYS))))
        else:  # at the network's input, after what is done to the image
            inputs = network.resized(bits(images(), Draws(0, KEYS)))
            by_hand = network.classify((theirs(inputs * 2 - 1) + 1) / 2)
    torch.testing.assert_close(found, by_hand.softmax(dim=1))


def test_a_changed_checkpoint_is_another_defense(storage: Storage, tmp_path: Path, tiny_checkpoint: Path) -> None:
    path = published("hgd", tmp_path / "theirs.ckpt")
    spec = target(tiny_checkpoint, "hgd", hgd=GuidedDenoiser(str(path)))
    first = registry.resolve(spec, storage, classes=CLASSES)
    state = torch.load(path, weights_only=True)
    state["state_dict"]["net.denoise.final.weight"] += 1
    torch.save(state, path)
    second = registry.resolve(spec, storage, classes=CLASSES)
    assert first.id != second.id
    assert first.weights == second.weights


def test_the_dynamic_noise_is_drawn_for_each_image_and_stays_small() -> None:
    purifier = RepresentationPurifier("NRP.pth", noise=0.05)
    seen: list[Tensor] = []

    def keep(moved: Tensor) -> Tensor:
        seen.append(moved)
        return moved

    class Keep(torch.nn.Module):
        forward = staticmethod(keep)

    for keys in (KEYS, KEYS[1:]):
        draws = Draws(0, keys)
        draws.begin(0)
        Purified(purifier, Keep())(images()[-len(keys) :], draws)
    assert torch.equal(seen[0][1:], seen[1])
    assert 0 < float((seen[0] - images()).abs().max()) <= 16 / 255 + 1e-6


def test_what_is_no_published_checkpoint_is_refused_with_the_one_that_is_wanted(
    storage: Storage, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    nrp, hgd = RepresentationPurifier, GuidedDenoiser
    for purifier, message in (
        (nrp(str(other)), r"other\.safetensors: does not fit .* 694 keys missing .* wanted is NRP\.pth, of"),
        (hgd(str(other)), r"other\.safetensors: does not fit .* wanted is denoise_incepv3_012\.ckpt, of"),
        (nrp(str(tmp_path / "gone.pth")), r"checkpoint .*gone\.pth: no such object; wanted is NRP\.pth, of"),
        (hgd(str(tmp_path)), r"checkpoint .*; wanted is denoise"),
    ):
        name = "nrp" if isinstance(purifier, nrp) else "hgd"
        with pytest.raises(WeightsError, match=message):
            registry.resolve(target(tiny_checkpoint, name, **{name: purifier}), storage, classes=CLASSES)
