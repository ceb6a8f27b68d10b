"""Optimization in one training process: steps of AdamW on clean, stored adversarial and freshly attacked images."""

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
from pipeline.dataset.batch import Batch
from pipeline.training.recipe import Schedule


class Trainer:
    """A network in training: its weights, their moving average, its optimizer and its learning rate.

    Args:
        network: Maps (B, 3, H, W) in [0, 1] to logits, trainable, on its device.
        schedule: Optimization settings.
        attack: Attack that crafts training images on the network.
        steps: Number of steps of the whole training.
        distributed: Whether several processes train the network.
    """

    def __init__(
        self, network: nn.Module, schedule: Schedule, attack: Attack, *, steps: int, distributed: bool
    ) -> None:
        self.network = network
        self.schedule = schedule
        self.attack = attack
        self.device = next(network.parameters()).device
        self._distributed = distributed
        self._wrapped = DistributedDataParallel(network) if distributed else network
        self._average = ModelEmaV3(network, decay=schedule.ema, use_warmup=True) if schedule.ema else None
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self._scheduler = LambdaLR(self._optimizer, learning_rate_factor(steps, schedule.warmup))

    @property
    def averaged_network(self) -> nn.Module:
        """The network that is measured and kept: with averaged weights, or the trained one if `ema` is 0."""
        return self.network if self._average is None else self._average.module

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(self._scheduler.get_last_lr()[0])

    def step(self, batch: Batch, *, seed: tuple[int, ...]) -> float:
        """Takes one step and returns the loss; random draws depend only on `seed`, so a repeated step is the same.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        images, labels = codec.to_float(batch["images"].to(self.device)), batch["labels"].to(self.device)
        seeds = np.random.SeedSequence(seed).generate_state(2)
        torch.manual_seed(int(seeds[0]))  # for dropout and the like
        if self.schedule.augment == "flip":
            mirrored = torch.rand(len(images), generator=torch.Generator().manual_seed(int(seeds[1]))) < 0.5
            images[mirrored] = images[mirrored].flip(-1)
        prefix = "-".join(map(str, seed))  # so that the attack's draws differ from epoch to epoch
        keys = [f"{prefix}-{key}" for key in batch["keys"]]
        images = self._attack_some(images, labels, ~batch["adversarial"], keys)
        self._wrapped.train()
        with self._autocast():
            loss = F.cross_entropy(self._wrapped(images).float(), labels)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()}; lower learning_rate, or train in float32")
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._scheduler.step()
        if self._average is not None:
            self._average.update(self.network, step=self._scheduler.last_epoch)
        return loss.item()

    def synchronise_buffers(self) -> None:
        """Copies the first process's batch norm statistics to every process; each has counted only its own batches.

        Otherwise accuracy, and attacks after a worker is replaced, would depend on the process.
        """
        if self._distributed:
            for module in (self.network, self.averaged_network):
                for buffer in module.buffers():
                    distributed.broadcast(buffer, src=0)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rate": self._scheduler.last_epoch,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Resumes from a state."""
        self.network.load_state_dict(state["network"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.last_epoch = state["rate"]

    def _attack_some(self, images: Tensor, labels: Tensor, clean: Tensor, keys: list[str]) -> Tensor:
        """Replaces a share of the clean images, in place, by attacks on the current network.

        Args:
            images: (B, 3, H, W) in [0, 1].
            labels: (B,) int64.
            clean: (B,) bool, which images are clean.
            keys: Keys of the images, for the attack's random draws.
        """
        chosen = torch.nonzero(clean).flatten().to(self.device)
        chosen = chosen[: round(self.schedule.crafted * len(chosen))]
        if not len(chosen):
            return images
        self.network.eval()
        chosen_keys = [keys[index] for index in chosen.tolist()]
        images[chosen] = self.attack(self.network, images[chosen], labels[chosen], chosen_keys).detach()
        return images

    def _autocast(self) -> AbstractContextManager[object]:
        if self.schedule.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def learning_rate_factor(steps: int, warmup: float) -> Callable[[int], float]:
    """The factor of the highest learning rate at each step: a linear warm-up, then half a cosine down to 0.

    References:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv 1608.03983, eq. 5.
    """
    rising = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return factor
