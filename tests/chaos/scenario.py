"""The undisturbed run that scenarios of the fault campaign are compared with, and the row that each returns."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.ledger import Unit
from tests.chaos.site import INPUT, Damage, Site, commits


@dataclass(frozen=True)
class Row:
    """Result of a scenario.

    Attributes:
        fault: Description of the fault.
        injected: How often it was injected.
        damage: Damage to the results.
        seconds: Extra run time per injection.
        note: Anything else that was observed.
        as_promised: Whether exit codes, listed failures and times are as documented.
    """

    fault: str
    injected: int
    damage: Damage
    seconds: float
    note: str = ""
    as_promised: bool = True


class Campaign:
    """The undisturbed run that every scenario is compared with.

    Args:
        site: Server, proxy and cluster.
        scale: 1 for the whole campaign; less for fewer injections.
        shards: The input shards.

    Attributes:
        recipe: Recipe over the undamaged input shards.
        store: Store of the undisturbed run.
        reference: Committed results of that run, and the hash of their bytes.
        undisturbed_s: Seconds that the run took, with warm caches.
    """

    def __init__(self, site: Site, *, scale: float, shards: str = f"{INPUT}/s-*.tar") -> None:
        self.site = site
        self.scale = scale
        self.recipe = site.recipe(shards)
        site.complete(self.recipe, new_store())  # warms caches
        self.store = new_store()
        started = time.monotonic()
        site.complete(self.recipe, self.store)
        self.undisturbed_s = time.monotonic() - started
        self.reference: dict[Unit, str] = commits(self.store)

    def scaled(self, count: int, *, least: int) -> int:
        """The number of injections at this campaign's scale."""
        return max(least, round(count * self.scale))

    def seconds_per_injection(self, started: float, injected: int) -> float:
        """Seconds beyond the undisturbed run since a start, per injection."""
        return max(0.0, time.monotonic() - started - self.undisturbed_s) / max(1, injected)


Scenario = Callable[[Campaign], Row]


def new_store() -> str:
    """URL of an empty store on the site's S3 server."""
    return f"s3://demo/{uuid.uuid4().hex}"
