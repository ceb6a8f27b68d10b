"""Images per second of data loaders for training: ours, plain WebDataset, and a folder of PNGs."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
import webdataset
from torch.utils.data import DataLoader

from jobs.demo import assets
from jobs.runners.curvature import first_images
from pipeline import dataset
from pipeline.data import codec, parts
from pipeline.data.parts import Images
from pipeline.data.sample import Part
from pipeline.ledger import Ledger, Unit
from pipeline.plan.recipe_reader import load_recipe
from pipeline.storage import Storage
from tests.bench.figures import Figure, seconds, spread_of

_ROOT = Path(__file__).parents[2]
_PARTS = 12
_BATCH = 32
_ROUNDS = 5


def _noisy(images: Images, number: int) -> Images:
    """The photographs with noise like that of six attacks at 16/255, each image with its own key."""
    generator = torch.Generator().manual_seed(number)
    noisy = []
    for _ in range(6):
        noise = 16 * (2 * torch.randint(0, 2, images.pixels.shape, generator=generator) - 1)
        noisy.append((images.pixels.int() + noise).clamp(0, 255).to(torch.uint8))
    keys = tuple(f"{number}-{time}-{key}" for time in range(6) for key in images.keys)
    return Images(keys, images.labels.repeat(6), torch.cat(noisy), images.target_classes.repeat(6))


def loader() -> list[Figure]:
    """Measures all loaders in one process and thread, in turns, over the same PNGs of 224 pixels, as uint8 batches."""
    torch.set_num_threads(1)
    assets.prepare(_ROOT / "build" / "demo")
    images = first_images(load_recipe(_ROOT / "jobs" / "recipes" / "demo.toml").job().data, 20)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Storage(f"{folder}/store", create=True))
        ledger.record_plan({})
        for number in range(_PARTS):
            noisy, part = _noisy(images, number), Part("photographs", number, _PARTS)
            tar = parts.encode_tar(noisy, noisy.pixels)
            ledger.commit(Unit("d-0", part), tar, "tar", {"n_ok": len(noisy.keys)})
            ledger.commit(Unit("d-0", part, "s-0", "a-0"), tar, "tar", {"n": len(noisy.keys)})
            for key, label, pixels in zip(noisy.keys, noisy.labels.tolist(), noisy.pixels, strict=True):
                file = Path(folder) / "png" / f"{label:04d}" / f"{key}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(codec.encode(pixels))
        tars = [
            ledger.storage.url_of(marker.object)
            for marker in ledger.read_markers(sorted(ledger.list_units("adversarial")))
        ]
        examples = dataset.open(ledger.storage.url).examples(batch_size=_BATCH)
        cached = dataset.open(ledger.storage.url).examples(batch_size=_BATCH, cache=f"{folder}/cache")
        plain = webdataset.WebDataset(tars, shardshuffle=False).decode("torchrgb8").to_tuple("png", "cls")
        files = torchvision.datasets.ImageFolder(f"{folder}/png", torchvision.transforms.PILToTensor())
        sides: dict[str, Callable[[], object]] = {
            "ours": lambda: [batch["images"] for batch in examples.loader()],
            "ours, cached": lambda: [batch["images"] for batch in cached.loader()],
            "WebDataset": lambda: [pixels for pixels, _ in DataLoader(plain, batch_size=_BATCH)],
            "a folder of PNGs": lambda: [pixels for pixels, _ in DataLoader(files, _BATCH, shuffle=True)],
        }
        count, rates = _PARTS * 6 * len(images.keys), {name: list[float]() for name in sides}
        for turn in range(_ROUNDS + 1):
            for name in sorted(sides, reverse=bool(turn % 2)):
                rate = count / seconds(sides[name])
                if turn:  # the first warms up
                    rates[name].append(rate)
    figures = [spread_of(f"loading: {name}", values, "images/s") for name, values in rates.items()]
    for other, bar in (("WebDataset", 0.95), ("a folder of PNGs", None)):
        ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates[other], strict=True)]
        figures.append(spread_of(f"ours, of {other}", ratios, "×", bar))
    return figures
