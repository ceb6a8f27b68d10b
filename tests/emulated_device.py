"""A device that torch takes for a GPU, emulated on the CPU: it counts copies between the host and itself, and waits.

Its tensors hold their values in tensors of the CPU. An operation on tensors of both is refused, as on a GPU. The
emulation belongs to a whole process, so each use starts one: `python -m tests.emulated_device` attacks images on both
devices and prints, as JSON, what each attack did.
"""

import json
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from jobs.gpu_check.variants import cheap_attack, variants
from pipeline.attack.batch import AdmixPool
from pipeline.attack.ensemble import Ensemble, Fuse
from pipeline.attack.loop import Iterative
from pipeline.attack.recipe import Attack
from pipeline.data import codec
from pipeline.models.classifier import Classifier

NAME = "emulated"
# The attack whose source copies and waits at each step, to show that this is counted.
COPYING = "mi, on a source that copies"
IN_BFLOAT16 = "mi, in bfloat16"

# Operations whose result the host waits for.
_WAITS = ("_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique")


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class EmulatedDevice:
    """The device and what has happened on it.

    Attributes:
        device: Its name for torch.
        counts: Numbers of copies (`to device`, `to host`), of waits by operation, of changes of dtype (`casts`), and of
            operations (`operations`).
    """

    def __init__(self) -> None:
        backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())
        torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device=) is a copy like any other
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # setting .data would not set the value here
        self.device = torch.device(NAME, 0)
        self.counts = Counter[str]()
        library: Any = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
        self._library = library
        library.fallback(lambda function, *args, **kwargs: self.call(function, args, kwargs), "PrivateUse1")
        library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # autocast alone casts nothing

    def call(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Calls an operation on the values of its arguments."""
        name = function._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        kwargs_on_host = {key: torch.device("cpu") if key == "device" else value for key, value in kwargs.items()}
        result = function(*tree_map(_value, args), **tree_map(_value, kwargs_on_host))
        if name in ("_to_copy", "copy_"):
            source, destination = args[0], kwargs.get("device") or args[0].device
            if name == "copy_":
                source, destination = args[1], args[0].device
            if name == "_to_copy" and result.dtype != source.dtype:
                self.counts["casts"] += 1
            if source.device != destination:
                self.counts["to device" if destination == self.device else "to host"] += 1
            if destination != self.device:
                return result
        else:
            if here and any(not isinstance(tensor, OnDevice) and tensor.ndim for tensor in tensors):
                raise RuntimeError(f"{name}: tensors of two devices")
            chosen = name.startswith("index") and any(tensor.dtype == torch.bool for tensor in here)
            if name in _WAITS or chosen:
                self.counts[f"waits for {name}"] += 1
        self.counts["operations"] += 1
        known = {id(tensor.value): tensor for tensor in here}  # an operation in place returns its argument
        wrapped = tree_map(
            lambda value: known.get(id(value), OnDevice(value, self)) if isinstance(value, Tensor) else value, result
        )
        if len(here) < len(tensors) or not here:
            return wrapped
        return return_and_correct_aliasing(function, args, kwargs, wrapped)  # type: ignore[no-untyped-call]


class OnDevice(Tensor):
    """A tensor of the emulated device."""

    value: Tensor
    emulation: EmulatedDevice

    @staticmethod
    def __new__(cls, value: Tensor, emulation: EmulatedDevice) -> "OnDevice":
        tensor: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=emulation.device,
        )
        tensor.value, tensor.emulation = value, emulation
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Calls an operation on the values."""
        emulation = next(leaf.emulation for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, OnDevice))
        return emulation.call(func, args, kwargs or {})

    def __deepcopy__(self, memo: Any) -> Tensor:
        """A copy on the same device, of which there is one."""
        del memo
        copied = OnDevice(self.value.clone(), self.emulation)
        return nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied

    def tolist(self) -> Any:
        """The values, which torch gives of its own tensors only."""
        return self.cpu().tolist()


def _value(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, OnDevice) else leaf


def _network() -> Classifier:
    """A classifier with batch norms, ReLU6 and resizing, of images (B, 3, 40, 40)."""
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=10).eval()
    statistics = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    return Classifier(network, {"input_size": 32, "interpolation": "bicubic", "policy": "direct", **statistics})


class _Copying(nn.Module):
    """A source that copies a number to the device and has the host wait, at each call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        logits: Tensor = self.network(images) + torch.tensor([0.0], device=images.device)
        return logits * (1 if logits.isfinite().all() else 0)


def _attacks() -> dict[str, tuple[Attack, Fuse | None]]:
    return {
        **variants(),
        IN_BFLOAT16: (cheap_attack("mi", precision="bfloat16"), None),
        COPYING: (cheap_attack("mi", name=COPYING), None),
    }


def main() -> None:
    """Runs attacks on both devices, with few and more steps, and prints what each did."""
    emulation = EmulatedDevice()
    torch.manual_seed(1)
    pixels, labels, keys = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8), torch.tensor([1, 0, 3]), "abc"
    sources = {device: _network().optimize_for(device) for device in (torch.device("cpu"), emulation.device)}

    def attacked(device: torch.device, attack: Attack, fuse: Fuse | None) -> Tensor:
        source: nn.Module = sources[device] if fuse is None else Ensemble([sources[device]] * 2, fuse)
        if attack.name == COPYING:
            source = _Copying(source)
        originals, classes = pixels.to(device), labels.to(device)
        images, pool = codec.to_float(originals), AdmixPool(originals, classes)
        aims = attack.target_classes(source, images, classes, keys)
        adversarial = attack(source, images, classes, keys, target_classes=aims, pool=pool)
        return codec.quantise(adversarial, originals, attack.epsilon, attack.norm).cpu()

    found = {}
    for name, (attack, fuse) in _attacks().items():
        counts, differing = [], 0.0
        for steps in (2, 4):
            some = replace(attack, steps=steps) if isinstance(attack, Iterative) else attack
            emulation.counts.clear()
            adversarial = attacked(emulation.device, some, fuse)
            counts.append(dict(emulation.counts))
            differing = float((adversarial != attacked(torch.device("cpu"), some, fuse)).double().mean())
        found[name] = {"counts": counts, "differing": differing}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
