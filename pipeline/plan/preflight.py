"""Preflight: loads and tries every model before workers start, and measures how the work divides between the stages."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.attack.cost import gradients_per_image
from pipeline.models import predict, registry
from pipeline.models.classifier import Classifier
from pipeline.models.registry import ResolvedModel
from pipeline.models.trial import require_enlarged_input
from pipeline.plan.external import ExternalAttack
from pipeline.plan.resolve import Plan, unpickle_plan
from pipeline.storage import Storage

log = logging.getLogger(__name__)


def preflight(pickled: bytes, storage: Storage) -> float:
    """Loads all models and purifiers of a plan on the CPU, so that one that cannot be loaded fails here, by name.

    Args:
        pickled: The plan, as `pickle_plan` gives it.
        storage: Where the models' weights are kept.

    Returns:
        The share of the work that is scoring, in [0, 1]: from the time of one gradient of each source and of one
        prediction of each target on this CPU, and the number of each that the attacks need.

    Raises:
        WeightsError: A model's or a purifier's stored weights are gone or damaged, or do not fit; or a source does not
            take the larger images of an attack.
    """
    plan = unpickle_plan(pickled)
    cpu = torch.device("cpu")
    sources = {member.id: member for source in plan.sources for member in source.members}
    targets = {target.id: target for target in plan.targets}
    rates = sorted({attack.enlargement for attack in plan.attacks.values()} - {1.0})
    image = torch.rand(1, 3, plan.job.data.preparation.crop, plan.job.data.preparation.crop)
    gradient_s: dict[str, float] = {}
    prediction_s: dict[str, float] = {}
    for id_, model in (sources | targets).items():
        classifier = registry.load_resolved(model, storage, classes=plan.job.data.classes, device=cpu)
        if id_ in sources:
            for rate in rates:
                require_enlarged_input(model.spec.name, classifier, rate)
            gradient_s[id_] = _time_s(lambda: _take_gradient(classifier, image))  # noqa: B023  # called at once
        if id_ in targets:
            prediction_s[id_] = _prediction_s(model, classifier, image, storage)
    return scoring_share(plan, gradient_s, prediction_s)


def scoring_share(plan: Plan, gradient_s: dict[str, float], prediction_s: dict[str, float]) -> float:
    """The share of the work that is scoring, in [0, 1].

    Args:
        plan: The plan.
        gradient_s: Source network's identity → seconds per gradient of an image.
        prediction_s: Target's identity → seconds per prediction of an image.
    """
    costs = [gradients_per_image(attack) for attack in plan.attacks.values() if not isinstance(attack, ExternalAttack)]
    attacking = sum(costs) * sum(gradient_s[member.id] for source in plan.sources for member in source.members)
    scoring = sum(prediction_s.values()) * (1 + len(plan.attacks) * len(plan.sources))
    log.info("for each image %.2f s of gradients and %.2f s of predictions, on this CPU", attacking, scoring)
    return scoring / (attacking + scoring)


def _prediction_s(model: ResolvedModel, classifier: Classifier, image: Tensor, storage: Storage) -> float:
    """Seconds per prediction of an image; a defense of many forward passes is not run, its time is multiplied."""
    defenses = registry.load_defenses(model, storage, device=torch.device("cpu"))
    once = predict.SeededDefenses([defense for defense in defenses if defense.forward_passes == 1], 0, ["x"])
    passes = math.prod(defense.forward_passes for defense in defenses)

    def predict_once() -> None:
        with contextlib.suppress(FloatingPointError):  # which a run reports for each part that it concerns
            once.predict(classifier, image, slice(0, 1))

    return passes * _time_s(predict_once)


def _take_gradient(model: nn.Module, image: Tensor) -> None:
    inputs = image.clone().requires_grad_()
    torch.autograd.grad(cast("Tensor", model(inputs)).sum(), inputs)


def _time_s(function: Callable[[], object]) -> float:
    """Seconds of the shorter of two calls: the first has things to set up."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)
