"""Images, labels and keys that people pass to an attack."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import attack
from tests.corpus.calls import CLASSES, EPSILON, LABELS, attacked, is_plain, nearly_plain, network, pictures, plain
from tests.corpus.cases import Refusal, case

TAKEN: dict[str, Callable[[Tensor], Any]] = {
    "that require gradients": lambda x: x.clone().requires_grad_(),
    "that came out of a graph": lambda x: x.clone().requires_grad_() * 1,
    "as an array": lambda x: x.numpy(),
    "as a list of tensors": list,
    "as a list of arrays": lambda x: [image.numpy() for image in x],
    "as nested lists": lambda x: x.tolist(),
    "with channels last in memory": lambda x: x.to(memory_format=torch.channels_last),
}
for words, take in TAKEN.items():

    @case("calls", f"images {words}", True)
    def _(_: Path, take: Callable[[Tensor], Any] = take) -> bool:
        return is_plain(attacked(images=take(pictures())))


for dtype, answered in (
    (torch.float64, torch.float64),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
):

    @case("calls", f"images in {dtype}", (True, answered, True))
    def _(_: Path, dtype: torch.dtype = dtype) -> tuple[bool, torch.dtype, bool]:
        images = pictures().to(dtype)
        result = attacked(images=images)
        inside = (result - images.to(result.dtype)).abs().max().item() <= EPSILON + 1e-6
        return nearly_plain(result), result.dtype, inside


@case("calls", "an empty batch", (0, 3, 8, 8))
def _(_: Path) -> tuple[int, ...]:
    return tuple(attacked(images=pictures()[:0], labels=[]).shape)


@case("calls", "a batch of one image", True)
def _(_: Path) -> bool:
    return torch.allclose(attacked(images=pictures()[:1], labels=[0])[0], plain()[0], atol=1e-6)


REFUSED_IMAGES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "as bytes": (lambda x: (x * 255).byte(), r"torch.uint8: expected \(B, C, H, W\) float.*images.float\(\) / 255"),
    "as whole numbers": (lambda x: (x * 255).long(), r"torch.int64.*images.float\(\) / 255"),
    "without a batch": (lambda x: x[0], r"\(3, 8, 8\) torch.float32: .*; one image is a batch as images\[None\]"),
    "with channels last": (lambda x: x.permute(0, 2, 3, 1), r"\(2, 8, 8, 3\).*images.permute\(0, 3, 1, 2\)"),
    "in [0, 255]": (lambda x: x * 255, r"of bytes, images / 255"),
    "in [-1, 1]": (lambda x: x * 2 - 1, r"of \[-1, 1\], \(images \+ 1\) / 2"),
    "normalised": (lambda x: (x - 0.45) / 0.22, "a source that needs normalised images normalises them itself"),
    "a little above 1": (lambda x: x + (x > 0.9) * 0.1001 - (x > 0.9) * 0.0999 + 0.002, r"images.clamp\(0, 1\)"),
    "with NaN": (lambda x: torch.where(x > 0.9, torch.nan, x), "some are NaN"),
    "without pixels": (lambda x: x[:, :, :0], r"\(2, 3, 0, 8\)"),
    "that are complex": (lambda x: x + 0j, "torch.complex64"),
    "that are None": (lambda _: None, "of which no tensor can be made"),
    "that are names of files": (lambda _: ["a.png", "b.png"], "of which no tensor can be made"),
    "of two sizes": (
        lambda x: [x[0], x[1, :, :4]],
        "images are a list of which no tensor can be made .stack expects each tensor to be equal size",
    ),
}
for words, (take, cause) in REFUSED_IMAGES.items():

    @case("calls", f"images {words}", Refusal(cause))
    def _(_: Path, take: Callable[[Tensor], Any] = take) -> Tensor:
        return attacked(images=take(pictures()))


TAKEN_LABELS: dict[str, Any] = {
    "as a list": [0, 3],
    "as a list of tensors": list(LABELS),
    "as an array": LABELS.numpy(),
    "as int32": LABELS.int(),
    "as uint8": LABELS.byte(),
}
for words, labels in TAKEN_LABELS.items():

    @case("calls", f"labels {words}", True)
    def _(_: Path, labels: Any = labels) -> bool:
        return is_plain(attacked(labels=labels))


REFUSED_LABELS: dict[str, tuple[Any, str]] = {
    "as floats": (LABELS.float(), r"labels are \(2,\) torch.float32: expected \(2,\) int64"),
    "as one-hot rows": (nn.functional.one_hot(LABELS, CLASSES), r"labels are \(2, 5\).*labels.argmax\(1\)"),
    "as a column": (LABELS[:, None], r"labels are \(2, 1\).*labels.flatten\(\)"),
    "as one number": (3, r"labels are \(\) torch.int64"),
    "of another number": (LABELS[:1], r"labels are \(1,\) torch.int64: expected \(2,\) int64"),
    "as booleans": (LABELS > 0, "torch.bool"),
    "as names": (["cat", "dog"], "labels are a list of which no tensor can be made"),
    "out of the source's classes": ([0, CLASSES], "class 5: the source has 5 classes, 0 to 4"),
    "below 0": ([0, -1], "labels: -1 of image 1: classes count from 0"),
}
for words, (labels, cause) in REFUSED_LABELS.items():

    @case("calls", f"labels {words}", Refusal(cause))
    def _(_: Path, labels: Any = labels) -> Tensor:
        return attacked(labels=labels)

    @case("calls", f"target classes {words}", Refusal(cause.replace("labels", "target_classes")))
    def _(_: Path, labels: Any = labels) -> Tensor:
        bound = attack.build("mi", network(), target_class="shard", steps=2)
        return bound(pictures(), LABELS, target_classes=labels)


@case("calls", "target classes that are not asked for", Refusal("target_class = 'shard', and taken by no other"))
def _(_: Path) -> Tensor:
    return attacked(target_classes=LABELS)


@case("calls", "no target classes where they are asked for", Refusal("target_class = 'shard', and taken by no other"))
def _(_: Path) -> Tensor:
    return attack.build("mi", network(), target_class="shard")(pictures(), LABELS)


@case("calls", "keys as whole numbers", True)
def _(_: Path) -> bool:
    return is_plain(attacked(keys=[0, 1]))


for words, keys, cause in (
    ("of another number", ["a"], "keys are 1 of type str: expected 2 texts"),
    ("as one text", "ab", "keys are 1 of type str: expected 2 texts"),
    ("that repeat", ["a", "a"], "keys: 'a' comes twice"),
    ("as tensors", [torch.tensor(0), torch.tensor(1)], "keys are 2 of type Tensor"),
):

    @case("calls", f"keys {words}", Refusal(cause))
    def _(_: Path, keys: Any = keys) -> Tensor:
        return attacked(keys=keys)


# Parts whose input is an image: every one, of however many channels.
EVERY_PART = ("gnp", "ti", "vt", "pgn", "rap", "di", "si", "admix")
for part in EVERY_PART:

    @case("calls", f"images of one channel and of five under {part}", [(2, 1, 8, 8), (2, 5, 8, 8)])
    def _(_: Path, part: str = part) -> list[tuple[int, ...]]:
        shapes = []
        for channels in (1, 5):
            bound = attack.build(f"{part}+mi", network(channels), epsilon=EPSILON, steps=2)
            result, images = bound(pictures(channels), LABELS), pictures(channels)
            assert 0 < (result - images).abs().max() <= EPSILON + 1e-6
            shapes.append(tuple(result.shape))
        return shapes


@case("calls", "images that are not square under di", Refusal("di: images of 8 x 24: takes square ones"))
def _(_: Path) -> Tensor:
    return attack.build("di+mi", network(), steps=2)(pictures().reshape(2, 1, 8, 24), LABELS)


@case("calls", "images that are not square", True)
def _(_: Path) -> bool:
    bound = attack.build("mi+ti", network(), epsilon=EPSILON, steps=2)
    return bound(pictures().reshape(2, 1, 8, 24), LABELS).shape == (2, 1, 8, 24)
