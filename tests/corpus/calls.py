"""Calls from Python with what people have at hand."""

import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import attack
from pipeline.attack.ensemble import Ensemble
from tests.corpus.cases import Refusal, case

CLASSES = 5
LABELS = torch.tensor([0, 3])
EPSILON = 8 / 255
# Steps of an attack whose signs differ between two precisions on some pixels only.
NEARLY = 0.9


def network(channels: int = 3, classes: int = CLASSES) -> nn.Module:
    """Logits (B, classes) of images (B, channels, 8, 8)."""
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(channels * 64, 16), nn.SiLU(), nn.Linear(16, classes)
    return nn.Sequential(*layers).eval()


def pictures(channels: int = 3) -> Tensor:
    """(2, channels, 8, 8) float32 in [0, 1]."""
    return torch.rand(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))


IMAGES = pictures()


def plain(combination: str = "gnp+mi", **settings: Any) -> Tensor:
    """The attack on the plain network, in the plain way."""
    return attack.build(combination, network(), epsilon=EPSILON, steps=2, **settings)(pictures(), LABELS)


def attacked(source: Any = None, images: Any = IMAGES, labels: Any = LABELS, **call: Any) -> Tensor:
    """The same attack with something odd."""
    bound = attack.build("gnp+mi", source or network(), epsilon=EPSILON, steps=2)
    return bound(images, labels, **call)


def is_plain(result: Tensor) -> bool:
    """Whether a result is that of the plain call, to the bit, and outside of every graph."""
    return torch.equal(result, plain()) and not result.requires_grad and not result.is_inference()


def nearly_plain(result: Tensor) -> bool:
    """Whether a result moves nearly every pixel as the plain call does."""
    step = (result.double() - pictures().double()).sign() == (plain() - pictures()).sign()
    return step.double().mean().item() > NEARLY


class Answers(nn.Module):
    """A network whose answer is something else than its logits."""

    def __init__(self, answer: Callable[[Tensor], Any], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner or network()
        self.answer = answer
        self.training = False

    def forward(self, images: Tensor) -> Any:
        """What `answer` makes of the logits."""
        return self.answer(self.inner(images))


class Sees(nn.Module):
    """A network that gets something else than the images."""

    def __init__(self, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = network()
        self.view = view
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits of what `view` makes of the images."""
        logits: Tensor = self.inner(self.view(images))
        return logits


@dataclass
class ModelOutput:
    """An answer as those of Hugging Face's models."""

    logits: Tensor
    hidden: None = None


Auxiliary = namedtuple("Auxiliary", ["logits", "aux"])  # as torchvision's

ANSWERS: dict[str, Callable[[Tensor], Any]] = {
    "(logits, features)": lambda z: (z, z[:, :2]),
    "a list of logits": lambda z: [z, None],
    "torchvision's named tuple": lambda z: Auxiliary(z, z),
    "a dict with logits": lambda z: OrderedDict(loss=None, logits=z),
    "an object with .logits": ModelOutput,
    "logits (B, C, 1, 1)": lambda z: z[:, :, None, None],
    "logits in float64": lambda z: z.double(),
}
for words, answer in ANSWERS.items():

    @case("calls", f"a source that answers {words}", True)
    def _(_: Path, answer: Callable[[Tensor], Any] = answer) -> bool:
        return is_plain(attacked(Answers(answer)))


NO_LOGITS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "features before logits": (lambda z: (z[:, :, None], z), r"answers a tuple: expected logits \(B, classes\)"),
    "(loss, logits)": (lambda z: (z.sum(), z), "answers a tuple"),
    "a dict without logits": (lambda z: {"out": z}, "answers a dict"),
    "None": (lambda _: None, "answers a NoneType"),
    "an array": (lambda z: z.detach().numpy(), "answers a ndarray"),
    "one number per image": (
        lambda z: z[:, 0],
        r"answers \(2,\) torch.float32 for 2 images: expected .* \(2, classes\)",
    ),
    "a map of logits": (lambda z: z[:, :, None, None].expand(2, CLASSES, 4, 4), r"answers \(2, 5, 4, 4\)"),
    "logits of one image": (lambda z: z[:1], r"answers \(1, 5\) torch.float32 for 2 images"),
    "whole numbers": (lambda z: z.long(), "torch.int64 for 2 images"),
    "classes": (lambda z: z.argmax(1), r"answers \(2,\) torch.int64"),
    "one logit": (lambda z: z[:, :1], r"answers \(2, 1\): of two classes, one logit z each"),
    "detached logits": (lambda z: z.detach(), "no gradient with respect to the images: it detaches"),
    "one-hot classes": (lambda z: nn.functional.one_hot(z.argmax(1), CLASSES).float(), "no gradient"),
    "rounded logits": (lambda z: z.round(), "zero gradient on all 2 images"),
    "constant logits": (lambda z: z * 0, "zero gradient on all 2 images"),
    "logits without two classes of the labels": (lambda z: z[:, :3], "class 3: the source has 3 classes, 0 to 2"),
}
for words, (answer, cause) in NO_LOGITS.items():

    @case("calls", f"a source that answers {words}", Refusal(cause))
    def _(_: Path, answer: Callable[[Tensor], Any] = answer) -> Tensor:
        return attacked(Answers(answer))


VIEWS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "detaches its input": (lambda x: x.detach(), "no gradient with respect to the images"),
    "rounds its input to bytes": (lambda x: (x * 255).round() / 255, "zero gradient on all 2 images"),
    "takes larger images": (lambda x: x[:, :, :4], r"fails on images \(2, 3, 8, 8\): mat1 and mat2 shapes"),
}
for words, (view, cause) in VIEWS.items():

    @case("calls", f"a source that {words}", Refusal(cause))
    def _(_: Path, view: Callable[[Tensor], Tensor] = view) -> Tensor:
        return attacked(Sees(view))


@case("calls", "a source that rounds its input, under a random start", Refusal("zero gradient on all 2 images"))
def _(_: Path) -> Tensor:
    return attack.build("pgd", Sees(torch.round), steps=2)(pictures(), LABELS)


@case("calls", "a source that answers NaN", Refusal("the gradient is not finite on image '0'"))
def _(_: Path) -> Tensor:
    try:
        return attacked(Answers(lambda z: z * torch.nan))
    except FloatingPointError as error:  # as documented
        raise ValueError(str(error)) from error


def normalised() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3), network())


def inner_training() -> nn.Module:
    source = normalised().eval()
    next(source.children()).train()
    return source


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return network()


SOURCES: dict[str, tuple[Callable[[], Any], str]] = {
    "in training mode": (normalised, r"the source is in training mode.*: source\.eval\(\)"),
    "with one batch norm in training mode": (inner_training, "the source's 0 is in training mode"),
    "made in inference mode": (made_in_inference_mode, "made within torch.inference_mode"),
    "that is a function": (lambda: lambda x: x, "source is a function: expected a torch.nn.Module"),
    "that is a class": (lambda: nn.Flatten, "source is a class Flatten"),
    "that is a recipe's tag": (lambda: "resnet50.tv_in1k", "source is a str"),
    "that is a list of models": (lambda: [network()], "source is a list"),
}
for words, (make, cause) in SOURCES.items():

    @case("calls", f"a source {words}", Refusal(cause))
    def _(_: Path, make: Callable[[], Any] = make) -> Tensor:
        return attacked(make())


@case("calls", "a source with frozen parameters", True)
def _(_: Path) -> bool:
    return is_plain(attacked(network().requires_grad_(False)))


@case("calls", "a source in DataParallel", True)
def _(_: Path) -> bool:
    return is_plain(attacked(nn.DataParallel(network()).eval()))


@case("calls", "a traced source", True)
def _(_: Path) -> bool:
    with warnings.catch_warnings(action="ignore"):
        return is_plain(attacked(torch.jit.trace(network(), pictures())))  # type: ignore[no-untyped-call]


@case("calls", "an ensemble of sources that answer differently", True)
def _(_: Path) -> bool:
    odd = Ensemble([Answers(ModelOutput), Answers(lambda z: (z, None))], "losses").eval()
    return torch.equal(attacked(odd), attacked(Ensemble([network(), network()], "losses").eval()))


@case("calls", "an ensemble of sources of different classes", Refusal("the ensemble's members have 5, 4 classes"))
def _(_: Path) -> Tensor:
    return attacked(Ensemble([network(), network(classes=4)]).eval(), labels=[0, 1])


for dtype in (torch.float64, torch.bfloat16, torch.float16):

    @case("calls", f"a source in {dtype}", (True, torch.float32))
    def _(_: Path, dtype: torch.dtype = dtype) -> tuple[bool, torch.dtype]:
        # The penalty's two points lie too near for few bits: without it.
        result = attack.build("mi", network().to(dtype), epsilon=EPSILON, steps=2)(pictures(), LABELS)
        return ((result - plain("mi")).abs() < 1e-6).float().mean().item() > NEARLY, result.dtype


@case("calls", "a call leaves source and images as they were", True)
def _(_: Path) -> bool:
    source, images = network(), pictures().requires_grad_()
    next(source.parameters()).requires_grad_(False)
    source(images).sum().backward()
    tensors = *source.parameters(), images
    before = [(tensor.requires_grad, tensor.grad, str(tensor.grad)) for tensor in tensors]
    assert is_plain(attacked(source, images))
    return not source.training and before == [
        (tensor.requires_grad, tensor.grad, str(tensor.grad)) for tensor in tensors
    ]


MODES: dict[str, Callable[[], Any]] = {
    "torch.no_grad()": torch.no_grad,
    "torch.inference_mode()": torch.inference_mode,
    "torch.autocast()": partial(torch.autocast, "cpu", torch.bfloat16),
}
for words, mode in MODES.items():

    @case("calls", f"a call within {words}", True)
    def _(_: Path, mode: Callable[[], Any] = mode) -> bool:
        source = network()
        with mode():
            result = attacked(source, pictures(), LABELS.clone())
        return is_plain(result)


@case("calls", "target classes within torch.inference_mode()", True)
def _(_: Path) -> bool:
    bound = attack.build("mi", network(), target_class="shard", steps=2)
    with torch.inference_mode():
        aims = LABELS.flip(0).clone()
        result = bound(pictures(), LABELS.clone(), target_classes=aims)
    return torch.equal(result, bound(pictures(), LABELS, target_classes=LABELS.flip(0)))


@case("calls", "a fixed target class out of the source's classes", Refusal("target_class = 9, and there are 5"))
def _(_: Path) -> Tensor:
    return attack.build("mi", network(), target_class=9)(pictures(), LABELS)


@case("calls", "an exact penalty on a source without a second derivative", True)
def _(_: Path) -> bool:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)).eval()
    exact, none = (
        attack.build("gnp+mi", linear, epsilon=EPSILON, steps=2, loss="logit", gnp={"form": "exact", "beta": beta})
        for beta in (0.8, 0)
    )
    return torch.equal(exact(pictures(), LABELS), none(pictures(), LABELS))
