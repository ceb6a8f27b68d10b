"""Gradients per second of every way to compute them, beside plain loops, other libraries and the device's limit."""

import contextlib
import gc
import importlib
import importlib.util
import itertools
import json
import os
import statistics
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from jobs.gpu_check.setting import Setting, create_network, preprocessing
from jobs.runners.benchmark import EPSILON, PlainModel, Run, elapsed_s, plain_loop
from pipeline.attack.precision import Precision, compute_in
from pipeline.attack.recipe import build
from pipeline.data import codec
from pipeline.models.device import release_memory
from pipeline.models.gpu_networks import LAUNCHES

STEPS = 2
STRICT, DEFAULTS = "plain loop, strict float32", "plain loop, torch's defaults"
# Goals on ResNet-50: times the two plain loops, and share of the convolutions' own rate.
GOALS = {STRICT: 4.0, DEFAULTS: 2.5}
CEILING_GOAL = 0.45
COMPILED = "torch.compile"


def rates(setting: Setting) -> dict[str, Any]:
    """Gradients per second by network, batch and implementation: the median of the rounds, or why there is none."""
    found: dict[str, dict[str, dict[str, float | str]]] = defaultdict(dict)
    for batch in setting.sizes.batches:
        for name in setting.sizes.rated:
            if setting.has_time:
                kept = None if batch == setting.sizes.batches[0] else _fastest_few(found, name)
                found[name][str(batch)] = _network_rates(setting, name, batch, kept)
                print(name, batch, json.dumps(found[name][str(batch)]), file=sys.stderr, flush=True)
    return {"gradients a second": found}


def _fastest_few(found: dict[str, dict[str, dict[str, float | str]]], name: str) -> set[str]:
    """What is measured at other batch sizes: the plain loops, and the four fastest of ours."""
    first = next(iter(found[name].values()))
    ours = {key: rate for key, rate in first.items() if key.startswith("ours") and isinstance(rate, float)}
    return {STRICT, DEFAULTS, *sorted(ours, key=lambda key: -ours[key])[:4]}


def _network_rates(setting: Setting, name: str, batch: int, kept: set[str] | None) -> dict[str, float | str]:
    pixels, labels, _ = setting.images(batch)
    images = codec.to_float(pixels)
    found: dict[str, float | str] = {}
    runs = {key: run for key, run in implementations(setting, name).items() if kept is None or key in kept}
    for key in list(runs):  # one after another, the riskiest last; each is freed before the next
        run = runs.pop(key)
        if not setting.has_time:
            found[key] = "not measured: no time was left"
            continue
        try:
            run(images, labels)  # not counted: it builds and warms up
            times = [elapsed_s(partial(run, images, labels), setting.device) for _ in range(setting.sizes.rounds)]
            found[key] = batch * STEPS / statistics.median(times)
        except Exception as error:  # one way that fails must not hide the others
            found[key] = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        del run
        free_memory(setting.device)
    return found


def free_memory(device: torch.device) -> None:
    """Frees what nothing uses any more: CUDA graphs hold theirs in cycles."""
    gc.collect()
    release_memory(device)


def implementations(setting: Setting, name: str) -> dict[str, Run]:
    """MI-FGSM in two steps by each implementation; each builds its network when it is first called."""
    plain = PlainModel(create_network(name), preprocessing(0)["mean"], preprocessing(0)["std"]).to(setting.device)  # type: ignore[arg-type]

    loop = partial(plain_loop, plain, steps=STEPS, look_ahead=False)

    def plainly(precision: Precision, images: Tensor, labels: Tensor) -> Tensor:
        with compute_in(precision, setting.device):
            return loop(images, labels)

    runs: dict[str, Run] = {
        STRICT: partial(_with_torchs_defaults, partial(plainly, "float32")),
        DEFAULTS: partial(_with_torchs_defaults, loop),
        "plain loop, bfloat16": partial(_with_torchs_defaults, partial(plainly, "bfloat16")),
    }
    for library in ("torchattacks", "torchattack"):
        if importlib.util.find_spec(library):
            options = {"device": setting.device} if library == "torchattack" else {}
            mi = importlib.import_module(library).MIFGSM
            attack = mi(plain, eps=float(EPSILON), alpha=float(EPSILON / STEPS), steps=STEPS, **options)
            runs[library] = partial(_with_torchs_defaults, attack)
    precisions: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
    launches = [launch for launch in LAUNCHES if launch != COMPILED]
    if name != setting.sizes.rated[0]:  # without ReLUs, cuDNN's are nothing else
        launches = [launch for launch in launches if "ReLU" not in launch]
    for launch in launches if setting.device.type == "cuda" else ("eager",):
        for precision in precisions:
            key = f"ours, {precision}" + (f", {launch}" if launch != "eager" else "")
            runs[key] = _Ours(setting, name, precision, launch)
    return runs


def compiled(setting: Setting) -> dict[str, Any]:
    """Gradients per second of a compiled network: a section of its own, as compiling takes a minute."""
    name, batch = setting.sizes.rated[0], setting.sizes.batches[0]
    if setting.device.type != "cuda":
        return {"not measured": "on a GPU alone"}
    pixels, labels, _ = setting.images(batch)
    images, run = codec.to_float(pixels), _Ours(setting, name, "bfloat16", COMPILED)
    run(images, labels)
    took = statistics.median(elapsed_s(partial(run, images, labels), setting.device) for _ in range(3))
    return {"gradients a second": {name: {str(batch): {f"ours, bfloat16, {COMPILED}": batch * STEPS / took}}}}


def _with_torchs_defaults(run: Run, images: Tensor, labels: Tensor) -> Tensor:
    """Runs with TF32 in convolutions and not in products, and with whichever kernels torch takes by itself."""
    attention, cudnn = torch.backends.cuda, torch.backends.cudnn
    with contextlib.ExitStack() as restored:
        restored.callback(
            torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled(), warn_only=True
        )
        restored.callback(attention.enable_mem_efficient_sdp, attention.mem_efficient_sdp_enabled())  # type: ignore[no-untyped-call]
        restored.callback(attention.enable_cudnn_sdp, attention.cudnn_sdp_enabled())  # type: ignore[no-untyped-call]
        restored.callback(attention.enable_flash_sdp, attention.flash_sdp_enabled())  # type: ignore[no-untyped-call]
        restored.callback(setattr, cudnn, "deterministic", cudnn.deterministic)
        restored.callback(setattr, cudnn, "allow_tf32", cudnn.allow_tf32)
        torch.use_deterministic_algorithms(False)
        for enable in (attention.enable_mem_efficient_sdp, attention.enable_cudnn_sdp, attention.enable_flash_sdp):
            enable(True)
        cudnn.allow_tf32, cudnn.deterministic = True, False
        return run(images, labels)


class _Ours:
    """Our attack in a precision, with a network that is launched in one way; made at the first call."""

    def __init__(self, setting: Setting, name: str, precision: Precision, launch: str) -> None:
        self._setting, self._name, self._launch = setting, name, launch
        self._attack = build("mi", epsilon=EPSILON, steps=STEPS, precision=precision)
        self._source: nn.Module | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        if self._source is None:
            self._source = self._setting.classifier(self._name, self._setting.sizes.side, launch=self._launch)
        return self._attack(self._source, images, labels, [str(index) for index in range(len(images))])


def goals(measured: Sequence[dict[str, Any]], ceiling: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals on the first network, what was found, and whether each holds.

    Args:
        measured: What `rates` and `compiled` found.
        ceiling: What `ceiling` found.
    """
    tables = [table for found in measured for table in list(found.get("gradients a second", {}).items())[:1]]
    network = tables[0][0] if tables else ""
    best: dict[str, float] = {}
    for by_name in itertools.chain.from_iterable(batches.values() for _, batches in tables):
        for key, rate in by_name.items():
            if isinstance(rate, float):
                best[key] = max(rate, best.get(key, 0.0))
    ours = max((rate for key, rate in best.items() if key.startswith("ours")), default=0.0)
    judged: list[dict[str, Any]] = [
        {"what": f"{network}: fastest of ours, times the {key}", "found": ours / best[key], "wanted": wanted}
        for key, wanted in GOALS.items()
        if key in best
    ]
    if ceiling.get("gradients a second"):
        in_bfloat16 = max((rate for key, rate in best.items() if key.startswith("ours, bfloat16")), default=0.0)
        share = in_bfloat16 / ceiling["gradients a second"]
        what = f"{network}: of the convolutions' own rate, in bfloat16"
        judged.append({"what": what, "found": share, "wanted": CEILING_GOAL})
    return [{**goal, "holds": goal["found"] >= goal["wanted"]} for goal in judged]


def ceiling(setting: Setting) -> dict[str, Any]:
    """Gradients per second if a network were its convolutions alone, each timed by itself in bfloat16, both ways."""
    name, batch = setting.sizes.rated[0], setting.sizes.batches[0]
    layers: Counter[tuple[Any, ...]] = Counter()

    def note(module: nn.Conv2d, inputs: tuple[Tensor, ...], _: Any) -> None:
        settings = module.stride, module.padding, module.dilation, module.groups
        layers[(tuple(inputs[0].shape[1:]), tuple(module.weight.shape), *settings)] += 1

    plain = create_network(name).to(setting.device)
    hooks = [module.register_forward_hook(note) for module in plain.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        plain(torch.rand(1, 3, *2 * [setting.sizes.side], device=setting.device))
    for hook in hooks:
        hook.remove()
    total = sum(count * _convolution_s(setting, batch, *layer) for layer, count in layers.items())
    return {"network": name, "batch": batch, "gradients a second": batch / total}


def _convolution_s(setting: Setting, batch: int, shape: Any, weight: Any, *settings: Any) -> float:
    """Seconds of a convolution and of its gradient by the images: the mean of ten in a row, the least of three."""
    options: dict[str, Any] = {"device": setting.device, "dtype": torch.bfloat16}
    images = torch.rand(batch, *shape, **options).contiguous(memory_format=torch.channels_last)
    kernel = torch.rand(weight, **options).contiguous(memory_format=torch.channels_last)
    stride, padding, dilation, groups = settings
    output = F.conv2d(images, kernel, None, *settings)

    def both() -> None:
        F.conv2d(images, kernel, None, *settings)
        wanted = [True, False, False]
        torch.ops.aten.convolution_backward(
            output, images, kernel, None, stride, padding, dilation, False, [0, 0], groups, wanted
        )

    def ten() -> None:  # in a row, as the device waits for the host between two measurements
        for _ in range(10):
            both()

    both()
    return min(elapsed_s(ten, setting.device) for _ in range(3)) / 10


# Parts of kernels' names → kind; the first that occurs counts.
_KINDS = {
    "convolutions and products": ("conv", "gemm", "cutlass", "xmma", "sgemm", "wgrad", "dgrad", "nvjet", "mm"),
    "copies and casts": ("copy", "memcpy", "memset", "nchw", "nhwc", "transpose", "cast"),
    "pooling": ("pool",),
    "attention and softmax": ("flash", "fmha", "softmax"),
    "norms": ("norm",),
    "reductions": ("reduce", "sum", "mean"),
    "elementwise": ("elementwise", "vectorized", "threshold", "relu", "where", "add", "mul", "sign", "clamp"),
}


def kernels(setting: Setting) -> dict[str, Any]:
    """Share of the device's time by kind of kernel, of our attack in bfloat16."""
    run = _Ours(setting, setting.sizes.rated[0], "bfloat16", "eager")
    pixels, labels, _ = setting.images(setting.sizes.batches[0])
    images = codec.to_float(pixels)
    run(images, labels)
    activity = ProfilerActivity.CUDA if setting.device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        run(images, labels)
        setting.synchronize()
    times: Counter[str] = Counter()
    largest: Counter[str] = Counter()
    for event in profiled.key_averages():
        spent = event.self_device_time_total if setting.device.type == "cuda" else event.self_cpu_time_total
        name = event.key.lower()
        times[next((kind for kind, parts in _KINDS.items() if any(part in name for part in parts)), "other")] += spent
        largest[event.key[:80]] += spent
    total = max(1, times.total())
    return {
        "share": {kind: spent / total for kind, spent in times.most_common()},
        "largest": {name: spent / total for name, spent in largest.most_common(8)},
    }


def encoding(setting: Setting) -> dict[str, Any]:
    """Images that all cores encode per second while the device computes, and what that costs the device."""
    run = _Ours(setting, setting.sizes.rated[0], "bfloat16", "eager")
    pixels, labels, _ = setting.images(setting.sizes.batches[0])
    images, one = codec.to_float(pixels), pixels[0].cpu()
    run(images, labels)
    alone = min(elapsed_s(partial(run, images, labels), setting.device) for _ in range(2))
    with _encoding(one, os.cpu_count() or 1) as count:
        started, before = time.perf_counter(), count()
        times: list[float] = []
        while not times or (time.perf_counter() - started < 3 and setting.has_time):
            times.append(elapsed_s(partial(run, images, labels), setting.device))
        rate = (count() - before) / (time.perf_counter() - started)
    return {
        "threads": os.cpu_count(),
        "images encoded a second": rate,
        "speed beside it": alone / statistics.median(times),
    }


@contextlib.contextmanager
def _encoding(pixels: Tensor, threads: int) -> Iterator[Callable[[], int]]:
    """Context in which threads encode an image again and again; gives the number of times so far."""
    stop, counts = threading.Event(), [0] * threads

    def encode(thread: int) -> None:
        while not stop.is_set():
            codec.encode(pixels)
            counts[thread] += 1

    with ThreadPoolExecutor(threads) as pool:
        for thread in range(threads):
            pool.submit(encode, thread)
        try:
            yield lambda: sum(counts)
        finally:
            stop.set()
