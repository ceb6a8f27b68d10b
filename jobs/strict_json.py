"""JSON that every parser accepts: NaN and infinities become null."""

import json
import math
from typing import Any


def dumps(value: Any) -> str:
    """A value as JSON; NaN and infinities, which JSON does not have, as null."""
    return json.dumps(_finite(value), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
