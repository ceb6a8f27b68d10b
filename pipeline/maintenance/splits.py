"""`_info.json`: the stored image shards as splits, in the format of timm's `wds` reader.

References:
    timm, `timm/data/readers/reader_wds.py`, `_load_info` and `_parse_split_info`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pipeline.ledger import Marker


def splits(markers: Iterable[Marker]) -> dict[str, Any]:
    """The content of `_info.json`: split → file names and numbers of images.

    The splits are `original`, `adversarial` and `adversarial:SOURCE:ATTACK`, prefixed with `DATASET:` where a store
    holds several datasets. Parts without images are left out: WebDataset takes an empty tar for an error.

    Args:
        markers: Markers of any kind, in the order of the shards; the fact `n` is the number of images.
    """
    image_markers = [marker for marker in markers if not marker.unit.target]
    several = len({marker.unit.dataset for marker in image_markers}) > 1
    lengths: dict[str, dict[str, int]] = defaultdict(dict)
    for marker in image_markers:
        unit, n = marker.unit, marker.fact("n")
        prefix = (unit.dataset,) if several else ()
        names = [("adversarial",), ("adversarial", unit.source, unit.attack)] if unit.attack else [("original",)]
        for name in names if n else []:
            lengths[split_name(*prefix, *name)][marker.object] = n
    return {
        "splits": {
            name: {
                "name": name,
                "num_samples": sum(files.values()),
                "filenames": list(files),
                "shard_lengths": list(files.values()),
            }
            for name, files in sorted(lengths.items())
        }
    }


def split_name(*components: str) -> str:
    """The name of a split, from its components.

    timm takes a name with `tar` or `..` in it for a file pattern, so both are rewritten.
    """
    safe = re.sub(r"[^A-Za-z0-9._:-]+", "-", ":".join(components))
    return re.sub(r"\.{2,}", "-", safe).replace("tar", "t-r")
