"""Range checks of an attack's settings: each raises a ValueError that states the field, its value and the range."""

import math
from fractions import Fraction


def require_count(name: str, value: int, *, most: int) -> None:
    """Refuses a count that is not in 1 … most."""
    if not 1 <= value <= most:
        raise ValueError(f"{name} = {value}: must be from 1 to {most:,}")


def require_share(name: str, value: float) -> None:
    """Refuses a share outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} = {value}: must lie in [0, 1]")


def require_not_negative(name: str, value: float) -> None:
    """Refuses a negative, infinite or undefined number."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} = {value}: must be a number from 0")


def require_positive(name: str, value: float, *, most: float, condition: str) -> None:
    """Refuses a number outside (0, most]; `condition` ends the message, such as ", in units of epsilon"."""
    if not 0 < value <= most:
        raise ValueError(f"{name} = {value}: must be positive, and at most {most}{condition}")


def require_distance(name: str, value: float | Fraction, *, norm: str = "linf", example: str = "") -> None:
    """Refuses a distance that no two images have."""
    most = largest_distance(norm)
    if not 0 < value <= most:
        raise ValueError(f"{name} = {value}: must lie in (0, {most}], for pixels in [0, 1]{example}")


def largest_distance(norm: str) -> int:
    """Upper bound of a distance between images: 1 for `linf` and `mean-abs`, 1000 for `l2`."""
    # Pixels lie in [0, 1]: no two differ by more than 1, no two images of 577 x 577 by more than 1,000 in L2.
    return 1000 if norm == "l2" else 1
