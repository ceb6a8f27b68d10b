"""Shared by the settings of models and defenses: where a defense is applied, and the error of a value out of range."""

from typing import Literal

# To the image as it is stored, before the target resizes it; or to the network's input, before it is normalised.
AppliesTo = Literal["image", "input"]


def require_setting(is_valid: bool, name: str, value: object, allowed: str) -> None:
    """Refuses a setting that is out of range.

    Args:
        is_valid: Whether the value is accepted.
        name: The setting.
        value: Its value.
        allowed: What is accepted: "must be from 1 to 7".

    Raises:
        ValueError: The value is not accepted.
    """
    if not is_valid:
        raise ValueError(f"{name} = {value}: {allowed}")
