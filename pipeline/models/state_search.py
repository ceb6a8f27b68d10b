"""Finds a network's weights in what a checkpoint holds: the one dictionary and prefix under which every key fits.

Training programs nest state dicts (`state_dict`, `model`, `ema`), wrap networks (`module.`, `_orig_mod.`), and put
normalisers in front (`1.` of a Sequential). None of these names is looked for: keys are compared with the network's.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.errors import WeightsError
from pipeline.models.checkpoint_file import printable

_MOST_DEPTH = 4

# Modules that torch's own wrappers insert anywhere within a network.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

# Names in torchvision's published files that its densenets and vision transformers have given up since.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)

# Of torch's AveragedModel, and of a common counter of operations: no weights of any network.
_COUNTERS = ("n_averaged", "total_ops", "total_params")

# A batch norm's number of batches, which files from before it existed lack; in eval mode it has no effect.
_NO_EFFECT = "num_batches_tracked"


@dataclass(frozen=True)
class Way:
    """One dictionary of a checkpoint, under one prefix of its keys, as a network's weights.

    Attributes:
        name: Names of the nested dictionaries and the prefix, joined by dots; empty for the file itself.
        state: The tensors by the network's keys.
        missing: Keys of the network that it lacks.
        unknown: Keys of the dictionary that the network lacks.
        unfit: What is wrong with tensors: their key, shape or dtype.
        normaliser: Left-over `mean` and `std` of a module in front of the network, by key.
    """

    name: str
    state: dict[str, Tensor]
    missing: list[str]
    unknown: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    normaliser: dict[str, Tensor] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether every key is there and fits, and none is left over."""
        return not (self.missing or self.unknown or self.unfit)

    @property
    def fault(self) -> str:
        """What does not fit, with the first keys."""
        counted = (("missing", self.missing), ("unknown", self.unknown))
        faults = [f"{len(keys)} {what} key{'s'[: len(keys) > 1]} ({_first(keys)})" for what, keys in counted if keys]
        return ", ".join(faults) or self.unfit[0]


def candidates(contents: object) -> dict[str, dict[str, Tensor]]:
    """The dictionaries of a checkpoint that hold tensors, nested ones under dotted names, the outermost first."""
    found: dict[str, dict[str, Tensor]] = {}
    level: list[tuple[tuple[str, ...], object]] = [((), contents)]
    seen: set[int] = set()  # a file's dictionaries may contain themselves
    for _ in range(_MOST_DEPTH + 1):
        inner: list[tuple[tuple[str, ...], object]] = []
        for path, value in level:
            if not isinstance(value, Mapping) or id(value) in seen:
                continue
            seen.add(id(value))
            tensors = {str(key): item for key, item in value.items() if isinstance(item, Tensor)}
            if tensors:
                found[".".join(path)] = tensors
            inner += [((*path, printable(key)), item) for key, item in value.items() if isinstance(item, Mapping)]
        level = inner
    return found


def find_weights(
    contents: object, expected: Mapping[str, Tensor], *, choice: str, checkpoint: str, architecture: str
) -> Way:
    """The way in which a checkpoint holds a network's weights.

    Args:
        contents: What the checkpoint holds.
        expected: The network's state dict.
        choice: Name of the way to take, or its beginning; empty for the only one.
        checkpoint: The file, for messages.
        architecture: The network, for messages.

    Raises:
        WeightsError: None fits, or several do that differ.
    """
    states = candidates(contents)

    def ways_of(chosen: str) -> list[Way]:
        return [way for path, state in states.items() for way in _ways(path, state, expected, chosen)]

    # Wrappers are left out of the keys' names, and so may be those of the choice.
    ways = ways_of(choice) or ways_of(".".join(step for step in choice.split(".") if step not in _WRAPPERS))
    fitting = [way for way in ways if way.fits]
    if choice and not ways:
        raise WeightsError(f"{checkpoint}: weights = {choice!r}: the file holds {_names(states, choice)}")
    if not fitting:
        fault = f": {max(ways, key=_agreement).fault}" if ways else ": it holds no tensors by name"
        choices = [f'"{way.name}"' for way in ways if way.name and any(again.fits for again in ways_of(way.name))]
        remedy = f"; to leave these out, set weights = {' or '.join(choices)}" if choices else ""
        raise WeightsError(
            f"{checkpoint}: does not fit {architecture}{fault}; the file holds {_outline(contents)}{remedy}"
        )
    different = [way for way in fitting[1:] if not _equal(way.state, fitting[0].state)]
    if different:
        names = " or ".join(f'"{way.name}"' for way in [fitting[0], *different] if way.name)
        raise WeightsError(
            f"{checkpoint}: holds several weights that fit {architecture}, and differ; set weights = {names}"
        )
    return fitting[0]


def _ways(path: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], choice: str) -> Iterator[Way]:
    """The ways of one dictionary: under every prefix that completes the network's keys, else under the likeliest."""
    state = _plain_keys(state, expected)
    prefixes = Counter(prefix for key in state for prefix in _prefixes(key, expected)) or Counter([""])
    required = [key for key in expected if not key.endswith(_NO_EFFECT)]
    complete = [prefix for prefix in prefixes if all(prefix + key in state for key in required)]
    used = {prefix + key for prefix in complete for key in expected}
    for prefix in complete or [prefixes.most_common(1)[0][0]]:
        name = ".".join(filter(None, (path, prefix.rstrip("."))))
        if choice and not f"{name}.".startswith(f"{choice}."):
            continue
        taken = {key: state[prefix + key] for key in expected if prefix + key in state}
        rest = state.keys() - used - {prefix + key for key in taken}
        normaliser = {key: state[key] for key in sorted(rest) if _is_normaliser(key, state[key])}
        # Who names a prefix leaves out what lies outside it: a loss's class weights, a metric's counts.
        chosen = choice == name and prefix
        unknown = [key for key in rest - normaliser.keys() if not chosen or key.startswith(prefix)]
        yield Way(
            name,
            taken,
            missing=sorted(key for key in required if key not in taken),
            unknown=sorted(key for key in unknown if key.rpartition(".")[2] not in _COUNTERS),
            unfit=[f"{key} {fault}" for key in taken if (fault := _tensor_fault(key, taken[key], expected[key]))],
            normaliser=normaliser,
        )


def _plain_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state without modules that torch's wrappers insert and without former names, unless the network has them."""
    wrappers = _WRAPPERS - {step for key in expected for step in key.split(".")}
    renamed = [rule for rule in _RENAMED if not any(rule[0].search(key) for key in expected)]

    def plain(key: str) -> str:
        for pattern, name in renamed:
            key = pattern.sub(name, key)
        return ".".join(step for step in key.split(".") if step not in wrappers)

    named = {plain(key): tensor for key, tensor in state.items()}
    return named if len(named) == len(state) else state


def _prefixes(key: str, expected: Mapping[str, Tensor]) -> Iterator[str]:
    """What stands before one of the network's keys in a key."""
    steps = key.split(".")
    for start in range(min(len(steps), 2 * _MOST_DEPTH)):
        if ".".join(steps[start:]) in expected:
            yield "".join(f"{step}." for step in steps[:start])


def _is_normaliser(key: str, tensor: Tensor) -> bool:
    return key.endswith(("mean", "std")) and tensor.layout == torch.strided and tensor.numel() == 3


def _tensor_fault(key: str, tensor: Tensor, wanted: Tensor) -> str:
    """What forbids to load a tensor; empty if nothing does. Another precision is converted."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        kind = "a quantized" if tensor.is_quantized else "a meta" if tensor.is_meta else "a sparse or nested"
        return f"is {kind} tensor, a plain one is wanted"
    if tensor.shape != wanted.shape:
        return f"has shape {tuple(tensor.shape)}, {tuple(wanted.shape)} is wanted"
    if tensor.is_floating_point() != wanted.is_floating_point() and not key.endswith(_NO_EFFECT):
        return f"is of {tensor.dtype}, {wanted.dtype} is wanted"
    return ""


def _agreement(way: Way) -> tuple[int, int]:
    return len(way.state) - len(way.unfit), -len(way.unknown)


def _equal(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(
        key in other and state[key].dtype == other[key].dtype and torch.equal(state[key], other[key])
        for key in state
        if not key.endswith(_NO_EFFECT)
    )


def _outline(contents: object) -> str:
    """The outermost keys of a file, or the type of what it holds."""
    return _first(list(contents), most=6) if isinstance(contents, Mapping) else f"a {type(contents).__name__}"


def _first(keys: list[str], most: int = 3) -> str:
    return ", ".join(map(printable, keys[:most])) + "…"


def _names(states: Mapping[str, Mapping[str, Tensor]], choice: str) -> str:
    names = [name for name in states if name]
    nearest = [name for name in names if choice in name] or difflib.get_close_matches(choice, names, n=1)
    return f"{', '.join(names) or 'one state dict alone'}" + (f"; did you mean {nearest[0]}?" if nearest else "")
