"""Before workers start: everything that they will load is loaded and tried, and says how the work divides."""

import logging
import math
import time
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.attack.cost import gradients
from pipeline.models import load, predict, registry
from pipeline.plan.external import ForeignAttack
from pipeline.plan.resolve import Plan, unseal
from pipeline.storage import Storage

log = logging.getLogger(__name__)


def preflight(sealed: bytes, storage: Storage) -> float:
    """Loads everything that the workers will load, on the CPU; what cannot be loaded fails here, by name.

    Returns:
        The share of the work that is scoring, in [0, 1]: by what one gradient of each source and one answer of each
        target takes here, and by how many of them the attacks want.

    Raises:
        WeightsError: A model's or a purifier's stored weights are gone or damaged, or do not fit; or a source does not
            take the larger images that an attack shows it.
    """
    plan, cpu = unseal(sealed), torch.device("cpu")
    attacked = {member.id: member for source in plan.sources for member in source.members}
    asked = {target.id: target for target in plan.targets}
    rates = sorted({attack.enlargement for attack in plan.attacks.values()} - {1.0})
    image = torch.rand(1, 3, plan.job.data.preparation.crop, plan.job.data.preparation.crop)
    gradient_s: dict[str, float] = {}
    answer_s: dict[str, float] = {}
    for id_, model in (attacked | asked).items():
        classifier = registry.load(model, storage, classes=plan.job.data.classes, device=cpu)
        if id_ in attacked:
            for rate in rates:
                load.require_enlarged(model.spec.name, classifier, rate)
            gradient_s[id_] = _seconds(lambda: _gradient(classifier, image))  # noqa: B023  # called at once
        if id_ in asked:
            defenses = registry.load_defenses(model, storage, device=cpu)
            # Those that answer thousands of times are not made to, here.
            once = predict.Behind([each for each in defenses if each.copies == 1], 0, ["x"])
            answers = math.prod(each.copies for each in defenses)
            answer_s[id_] = answers * _seconds(lambda: once.answer(classifier, image, slice(0, 1)))  # noqa: B023
    return scoring_share(plan, gradient_s, answer_s)


def scoring_share(plan: Plan, gradient_s: dict[str, float], answer_s: dict[str, float]) -> float:
    """The share of the work that is scoring.

    Args:
        plan: What is to be made.
        gradient_s: Of a source's network, by its id, what a gradient of an image takes.
        answer_s: Of a target, by its id, what an answer about an image takes.
    """
    costs = [gradients(attack) for attack in plan.attacks.values() if not isinstance(attack, ForeignAttack)]
    attacking = sum(costs) * sum(gradient_s[member.id] for source in plan.sources for member in source.members)
    scoring = sum(answer_s.values()) * (1 + len(plan.attacks) * len(plan.sources))
    log.info("for each image %.2f s of gradients and %.2f s of answers, on this CPU", attacking, scoring)
    return scoring / (attacking + scoring)


def _gradient(model: nn.Module, image: Tensor) -> None:
    inputs = image.clone().requires_grad_()
    torch.autograd.grad(cast("Tensor", model(inputs)).sum(), inputs)


def _seconds(function: Callable[[], object]) -> float:
    """The shorter of two calls: the first has things to set up."""
    spent = []
    for _ in range(2):
        started = time.perf_counter()
        function()
        spent.append(time.perf_counter() - started)
    return min(spent)
