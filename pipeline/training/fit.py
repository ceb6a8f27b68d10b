"""One process's part of training: steps of AdamW on clean, stored and freshly crafted images."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from pipeline.attack.recipe import Attack
from pipeline.data import codec
from pipeline.dataset.examples import Batch
from pipeline.training.lesson import Schedule


class Trainee:
    """A network in training: its weights, their average, and what its optimizer remembers.

    Args:
        network: Maps (B, 3, H, W) in [0, 1] to logits, trainable, on its device.
        schedule: How it is trained.
        attack: What crafts images.
        steps: How many steps the whole training takes.
        distributed: Whether several processes train it.
    """

    def __init__(
        self, network: nn.Module, schedule: Schedule, attack: Attack, *, steps: int, distributed: bool
    ) -> None:
        self.schedule, self.attack, self.network, self._distributed = schedule, attack, network, distributed
        self.device = next(network.parameters()).device
        self._wrapped = DistributedDataParallel(network) if distributed else network
        self._average = ModelEmaV3(network, decay=schedule.ema, use_warmup=True) if schedule.ema else None
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self._rate = LambdaLR(self._optimizer, rate_over(steps, schedule.warmup))

    @property
    def averaged(self) -> nn.Module:
        """What is measured and kept: the average of the weights, or they themselves where none is taken."""
        return self.network if self._average is None else self._average.module

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._rate.get_last_lr()[0])

    def step(self, batch: Batch, *, seed: tuple[int, ...]) -> float:
        """One step; returns the loss. What is drawn depends on `seed` alone, so a step done again is the same.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        images, labels = codec.to_float(batch["images"].to(self.device)), batch["labels"].to(self.device)
        numbers = np.random.SeedSequence(seed).generate_state(2)
        torch.manual_seed(int(numbers[0]))  # of dropout and the like
        if self.schedule.augment == "flip":
            mirrored = torch.rand(len(images), generator=torch.Generator().manual_seed(int(numbers[1]))) < 0.5
            images[mirrored] = images[mirrored].flip(-1)
        keys = [
            f"{'-'.join(map(str, seed))}-{key}" for key in batch["keys"]
        ]  # so that draws differ from epoch to epoch
        images = self._with_crafted(images, labels, ~batch["adversarial"], keys)
        self._wrapped.train()
        with self._computing():
            loss = F.cross_entropy(self._wrapped(images).float(), labels)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()}; lower learning_rate, or train in float32")
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._rate.step()
        if self._average is not None:
            self._average.update(self.network, step=self._rate.last_epoch)
        return loss.item()

    def agree(self) -> None:
        """Gives every process what the first one's batch norms have counted, of which each counts its own batches.

        Else what one process measures, and crafts after it has been replaced, would be another's.
        """
        if self._distributed:
            for module in (self.network, self.averaged):
                for buffer in module.buffers():
                    distributed.broadcast(buffer, src=0)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, as tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rate": self._rate.last_epoch,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on where a state was taken."""
        self.network.load_state_dict(state["network"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._rate.last_epoch = state["rate"]

    def _with_crafted(self, images: Tensor, labels: Tensor, clean: Tensor, keys: list[str]) -> Tensor:
        """The images, a share of the clean ones among them attacked on the model as it stands."""
        chosen = torch.nonzero(clean).flatten().to(self.device)
        chosen = chosen[: round(self.schedule.crafted * len(chosen))]
        if not len(chosen):
            return images
        self.network.eval()
        own = [keys[index] for index in chosen.tolist()]
        images[chosen] = self.attack(self.network, images[chosen], labels[chosen], own).detach()
        return images

    def _computing(self) -> AbstractContextManager[object]:
        if self.schedule.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def rate_over(steps: int, warmup: float) -> Callable[[int], float]:
    """The learning rate at a step, of the highest: up in a straight line, then down to 0 as half a cosine.

    References:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv 1608.03983, eq. 5.
    """
    rising = max(1, round(warmup * steps))

    def at(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return at
