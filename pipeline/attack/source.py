"""The source as a caller has it: modules that answer logits in many forms, checked where an attack uses them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.attack.ensemble import Ensemble, enlarged
from pipeline.attack.gradient import input_gradient


class SourceLogits(nn.Module):
    """A module whose answers are taken as logits: a tensor, the first of a tuple, `.logits`, or `["logits"]`.

    Args:
        model: Maps images (B, C, H, W) in [0, 1] to logits (B, classes), alone or with more.
        largest_class: The largest class that the attack asks for.
    """

    def __init__(self, model: nn.Module, largest_class: int) -> None:
        super().__init__()
        self.model = model
        self.largest_class = largest_class
        dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
        self._dtype = dtypes.pop() if len(dtypes) == 1 else None

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes), computed in the dtype of the model's parameters.

        Raises:
            ValueError: The model fails on such images, answers something else, or has fewer classes.
        """
        try:
            output = self.model(images.to(self._dtype or images.dtype))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"the source fails on images {tuple(images.shape)}: {reason}") from error
        logits = _logits_of(output, len(images))
        if self.largest_class >= logits.shape[1]:
            raise ValueError(
                f"class {self.largest_class}: the source has {logits.shape[1]} classes, 0 to {logits.shape[1] - 1}"
            )
        return logits

    def enlarged(self, rate: float) -> nn.Module:
        """The same source, for an input `rate` times as large."""
        return SourceLogits(enlarged(self.model, rate), self.largest_class)


def as_source(model: nn.Module, largest_class: int) -> nn.Module:
    """A model, or each member of an ensemble, as `SourceLogits`."""
    if isinstance(model, Ensemble):
        return Ensemble([as_source(member, largest_class) for member in model.members], model.fuse)
    return SourceLogits(model, largest_class)


def require_module(source: object) -> None:
    """Refuses a source that is no module: its mode, device and parameters would be unknown.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(source, nn.Module):
        raise ValueError(
            f"source is {_article(source)}: expected a torch.nn.Module that maps images in [0, 1] to logits; a "
            "function becomes one as the forward method of a Module"
        )


def require_usable(source: nn.Module) -> None:
    """Refuses a source that no gradient can be taken of, or whose logits depend on the batch.

    Raises:
        ValueError: It is in training mode, or its weights belong to inference mode.
    """
    training = [name for name, module in source.named_modules() if module.training and isinstance(module, _BatchNorm)]
    if source.training or training:
        place = "the source" if source.training else f"the source's {training[0]}"
        raise ValueError(f"{place} is in training mode, in which images of a batch influence each other: source.eval()")
    if any(tensor.is_inference() for tensor in (*source.parameters(), *source.buffers())):
        raise ValueError(
            "the source was made within torch.inference_mode(), where weights have no gradients: load it outside"
        )


def device_of(source: nn.Module) -> torch.device | None:
    """Device of a source's first parameter or buffer; None if it has neither."""
    return next((tensor.device for tensor in (*source.parameters(), *source.buffers())), None)


def require_gradient(source: nn.Module, images: Tensor) -> None:
    """Refuses a source none of whose logits changes with any pixel.

    Args:
        source: The source.
        images: (B, C, H, W) float in [0, 1], on which an attack had no effect.

    Raises:
        ValueError: The gradient is zero.
    """
    inputs = images.detach().requires_grad_()
    logits = source(inputs)
    # Distinct weights: probabilities add up to 1, so that the gradient of their sum is zero.
    weighted = logits * torch.arange(1, logits.shape[1] + 1, device=logits.device)
    if not input_gradient(weighted.sum(), inputs).any():
        raise ValueError(
            f"the source's logits have a zero gradient on all {len(images)} images: it rounds them, or is saturated"
        )


def _logits_of(output: Any, count: int) -> Tensor:
    """The logits (B, classes) in a model's answer.

    Raises:
        ValueError: There are none.
    """
    logits = getattr(output, "logits", output)
    if isinstance(logits, dict):
        logits = logits.get("logits", logits)
    if isinstance(logits, (tuple, list)) and logits and isinstance(logits[0], Tensor) and logits[0].ndim == 2:
        logits = logits[0]
    if not isinstance(logits, Tensor):
        raise ValueError(f"the source answers {_article(output)}: expected logits (B, classes); return them alone")
    if logits.ndim == 4 and logits.shape[2:] == (1, 1):
        logits = logits.flatten(1)
    if logits.ndim != 2 or len(logits) != count or not logits.is_floating_point():
        raise ValueError(
            f"the source answers {tuple(logits.shape)} {logits.dtype} for {count} images: expected logits "
            f"({count}, classes) float"
        )
    if logits.shape[1] < 2:
        raise ValueError(
            f"the source answers {tuple(logits.shape)}: of two classes, one logit z each is wanted, such as "
            "torch.cat([-z, z], 1)"
        )
    return logits


def _article(value: object) -> str:
    kind = type(value).__name__ if not isinstance(value, type) else f"class {value.__name__}"
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
