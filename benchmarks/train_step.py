"""What a training step with consistent explanations costs, compared with a plain one.

The program measures the time and peak memory of one optimiser step (zero_grad, forward, loss,
backward, SGD), for

- plain: one view, cross-entropy;
- two views: a second forward pass, with weight zero: the least that comparing two views costs;
- sklcam: ``ConsistentCAMClassifier.train_step``, alpha 1, beta 1e-6, p 1;
- sklcam, low: the same with ``memory="low"``, which trains the view in a pass of its own
  (``--memory`` chooses one of the two);
- sklcam, auto: "sklcam" with alpha and beta that balance themselves (``--auto``);
- with ``--objectives``, the classifier's other objectives: CGC as published (three passes),
  "sklcam" with terms in every fourth step (the mean of four), or with the view's map as a constant,
  and only energy in masks;
- input gradient: the same loss, but the map's gradient is computed on the way to the input, as in
  pytorch-grad-cam's BaseCAM with ``detach=False``:
  ``autograd.grad(score, input, create_graph=True)`` goes back through the whole network, and the
  gradient at the target layer is kept. (``backward(create_graph=True)`` would cost more, as it also
  computes the gradients of all parameters.)

All have the same uint8 images, weights and views, and compute in the same precision. Contenders
with the same loss must agree on it and on its gradient, or the program stops. In fp16, all scale
their losses, and unscale their gradients at the end of the step.

With ``--compile``, the classifiers are compiled block by block, and the networks of plain and of
two views as a whole, so ratios compare with a compiled plain step. The input gradient cannot be
compiled, because compiled code has no second derivative.

There are two figures for memory: the peak of allocated memory during the step, and the peak of
tensors that autograd keeps, counting each storage once and without parameters. The second is exact,
and the same on all devices.

With ``--count``, nothing is timed. Instead, the pretended device of ``tests/`` counts how many
operations a step launches on a device, without views of tensors and allocations, and how often the
host waits for the device. Many operations take longer to launch than to run.

    python benchmarks/train_step.py --arch resnet18 resnet50 convnext_tiny --batch-size 8
    python benchmarks/train_step.py --arch resnet18 --image-size 96 --memory normal --count
    python benchmarks/train_step.py --arch timm/vit_small_patch16_224 --target-layer blocks.10

Names are those that the classifier takes. The usual layer of a vision transformer is bypassed by a
residual connection, so low memory needs another layer, or can be left out (``--memory normal``).

The images are random pixels unless ``--data DIR`` names a folder with one folder per class.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from sklcam import ConsistentCAMClassifier
from sklcam.cam import GradCAM, HiResCAM, target_scores
from sklcam.datasets import load_class_folders
from sklcam.images import ImageDataset, normalize
from sklcam.networks import TargetLayer, record
from sklcam.training import ConsistentCAMLoss, Explanations, ViewSampler, Warp
from sklcam.training._data import AnnotatedBatch

BARS = {
    "sklcam": (2.15, 2.1),
    "sklcam, low": (2.6, 1.2),
}  # bounds on time and saved tensors, relative to plain
MOST_LAUNCHES = 3.2  # bound on sklcam's launches, relative to plain
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OURS = {"normal": "sklcam", "low": "sklcam, low"}
LEARNING_RATE = 1e-3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # for all networks, whatever their own
SEED = 0
# Relative bounds, on the loss and on the 2-norm of the whole gradient.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.05}
# A scaler's usual start, 2^16, may overflow; then a step changes nothing, and has no gradient.
LOSS_SCALE = 2.0**8


@dataclass(frozen=True)
class Batch:
    """The contenders' input: uint8 images, class indices, and a view and a mask of each image."""

    pixels: Tensor
    labels: Tensor
    warp: Warp
    masks: Tensor

    def images(self) -> Tensor:
        return normalize(self.pixels, MEAN, STD)


@dataclass(frozen=True)
class RecordedViews(ViewSampler):
    """A "distribution" with one outcome, so the classifier gets the same views as the others."""

    warp: Warp | None = None

    def __call__(self, n_images: int, **kwargs: object) -> Warp:
        assert self.warp is not None
        return self.warp


@dataclass(frozen=True)
class Contender:
    """A contender's own network, and a function that takes one step and returns the loss."""

    network: nn.Module
    step: Callable[[], Tensor]
    n_steps: int = 1  # steps that it takes at a time


@dataclass(frozen=True)
class Setting:
    """The settings that all contenders share."""

    device: str
    precision: str
    channels_last: bool
    compiled: bool

    @property
    def foreach(self) -> bool | None:
        """Whether the optimiser updates all parameters at once; None leaves it to torch."""
        return True if self.device == "pretend" else None  # as torch would on a device

    def scaler(self) -> GradScaler:
        """Return a scaler for the loss, which does nothing if scaling is not needed."""
        return GradScaler(self.device, LOSS_SCALE, enabled=self.precision == "fp16")

    def run(self, network: nn.Module, images: Tensor) -> Tensor:
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        half = self.precision != "fp32"
        with torch.autocast(self.device, PRECISIONS[self.precision], enabled=half):
            return network(images).float()


def plain_loss(network: nn.Module, batch: Batch, setting: Setting) -> Tensor:
    return F.cross_entropy(setting.run(network, batch.images()), batch.labels)


def two_views_loss(network: nn.Module, batch: Batch, setting: Setting) -> Tensor:
    images = batch.images()
    cross_entropy = F.cross_entropy(setting.run(network, images), batch.labels)
    return cross_entropy + 0 * setting.run(network, batch.warp(images)).sum()


def input_gradient_loss(
    network: nn.Module, batch: Batch, setting: Setting, layer: TargetLayer
) -> Tensor:
    def explain(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = setting.run(network, images.requires_grad_())
        activations = tape.activations
        score = target_scores(logits).sum()
        if setting.precision == "fp16":  # whose gradient at a single position would be too small
            score = score * layer.to_grid(activations).shape[-2:].numel()
        _, gradients = torch.autograd.grad(score, (images, activations), create_graph=True)
        grids = (layer.to_grid(of).float() for of in (activations, gradients))
        return logits, GradCAM(relu=False).combine(*grids)

    images = batch.images()
    view_images = batch.warp(images)
    # Attention has a second derivative only in its plain kernel.
    with record(network, layer.of(network), trunk=True) as tape, sdpa_kernel(SDPBackend.MATH):
        logits, maps = explain(images)
        _, maps_of_view = explain(view_images)
    cross_entropy = F.cross_entropy(logits, batch.labels)
    size = (images.shape[-2], images.shape[-1])
    explained = Explanations(maps, maps_of_view, batch.warp, size=size)
    return ConsistentCAMLoss()(cross_entropy, explained).total


def own_loop(
    network: nn.Module, loss_of: Callable[[nn.Module], Tensor], setting: Setting, compiled: bool
) -> Contender:
    """Train a copy of the network in a handwritten loop, with the classifier's optimiser."""
    network = copy.deepcopy(network).train()
    if compiled:
        network.compile()
    optimizer = torch.optim.SGD(
        network.parameters(), LEARNING_RATE, 0.9, weight_decay=1e-4, foreach=setting.foreach
    )
    scaler = setting.scaler()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(network)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return Contender(network, step)


def classifier(
    module: object, batch: Batch, setting: Setting, memory: str, **options: object
) -> ConsistentCAMClassifier:
    """Return an untrained classifier that knows the batch's classes."""
    height, width = batch.pixels.shape[-2:]
    clf = ConsistentCAMClassifier(
        module,
        **{"augment": None, **options},
        image_size=(height, width),
        mean=MEAN,
        std=STD,
        views=RecordedViews(warp=batch.warp),
        memory=memory,
        precision=setting.precision,
        channels_last=setting.channels_last,
        compile=setting.compiled,
        lr=LEARNING_RATE,
        max_epochs=0,
        device=setting.device,
        optimizer__foreach=setting.foreach,
        random_state=SEED,
        verbose=0,
    )
    classes = range(max(2, int(batch.labels.max()) + 1))
    masks = batch.masks.cpu() if options.get("gamma") else None
    clf.partial_fit(batch.pixels.cpu(), batch.labels.cpu(), classes=classes, masks=masks)
    clf.scaler_ = setting.scaler()
    clf.history.new_epoch()
    clf.history.new_batch()
    return clf


def own_step(clf: ConsistentCAMClassifier, batch: Batch) -> Contender:
    annotated = AnnotatedBatch((batch.pixels, batch.labels))
    annotated.annotations = {"masks": batch.masks} if clf.gamma else {}

    def step() -> Tensor:
        # fit_loop does this around its steps.
        with clf._own_randomness(), clf._differentiating():
            for _ in range(clf.every):
                if clf.every > 1:  # which counts steps
                    clf.history.new_batch()
                # Use the same seed each time, as the others do, for dropout and stochastic depth.
                torch.manual_seed(SEED)
                loss = clf.train_step(annotated)["loss"].detach()
            return loss

    return Contender(clf.module_, step, n_steps=clf.every)


def unchanged(image: Tensor) -> Tensor:
    """Augment nothing, because the others get augmented images."""
    return image


OBJECTIVES: dict[str, dict[str, object]] = {
    "CGC": {
        "alpha": 0.5,
        "beta": 0,
        "agreement": "cgc",
        "phi": HiResCAM(),
        "view_target": "shared",
        "ce_on": "all",
        "augment": unchanged,
    },
    "every fourth": {"every": 4},
    "constant view": {"view_gradient": False},
    "energy": {"alpha": 0, "beta": 0, "gamma": 1.0},
}


def contenders(
    arch: str,
    batch: Batch,
    setting: Setting,
    memories: list[str],
    layer: str,
    *,
    auto: bool,
    objectives: bool,
) -> dict[str, Contender]:
    first = classifier(arch, batch, setting, memories[0], target_layer=layer)
    network = first.module_
    layer = first.target_layer_
    others = [
        classifier(network, batch, setting, memory, target_layer=layer) for memory in memories[1:]
    ]
    same = {"batch": batch, "setting": setting}
    plain, two_views = partial(plain_loss, **same), partial(two_views_loss, **same)
    by_input = partial(input_gradient_loss, **same, layer=first.target_layer_)
    weights = {"alpha": "auto", "beta": "auto"}
    other = partial(classifier, network, batch, setting, "normal", target_layer=layer)
    asked = {"sklcam, auto": weights} if auto else {}
    asked |= OBJECTIVES if objectives else {}
    return {
        "plain": own_loop(network, plain, setting, setting.compiled),
        "two views": own_loop(network, two_views, setting, setting.compiled),
        **{OURS[clf.memory]: own_step(clf, batch) for clf in (first, *others)},
        **{name: own_step(other(**options), batch) for name, options in asked.items()},
        "input gradient": own_loop(network, by_input, setting, compiled=False),
    }


def loss_and_gradient(contender: Contender) -> tuple[Tensor, Tensor]:
    torch.manual_seed(SEED)  # dropout and stochastic depth
    loss = contender.step()
    parameters = contender.network.parameters()
    return loss, torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def check_agreement(field: dict[str, Contender], setting: Setting) -> None:
    """Check that contenders with one loss agree; drop the input gradient if it cannot run."""
    first, *others = (name for name in field if name in OURS.values())
    ours = loss_and_gradient(field[first])
    for name in others:
        agree(ours, loss_and_gradient(field[name]), (first, name), setting)
    try:
        theirs = loss_and_gradient(field["input gradient"])
    except RuntimeError as error:  # including out of memory
        reason = str(error).partition("\n")[0]
        print(f"  input gradient cannot run, so agreement is unchecked: {reason}")
        del field["input gradient"]
        return
    agree(ours, theirs, (first, "input gradient"), setting)


def agree(
    ours: tuple[Tensor, Tensor],
    theirs: tuple[Tensor, Tensor],
    names: tuple[str, str],
    setting: Setting,
) -> None:
    in_loss, in_gradient = (
        float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True)
    )
    found = f"loss differs by {in_loss:.0e}, gradient by {in_gradient:.0e}"
    tolerance = TOLERANCES[setting.precision]
    if not (in_loss <= tolerance and in_gradient <= tolerance):  # NaN is not, either
        raise SystemExit(f"{' and '.join(names)} disagree: {found}")
    print(f"  {' and '.join(names)} agree: {found}; {tolerance:.0e} is allowed")


def seconds(
    step: Callable[[], object], device: str, clock: Callable[[], float] = time.perf_counter
) -> float:
    gc.collect()  # nobody pays for another's garbage
    wait(device)
    start = clock()
    step()
    wait(device)
    return clock() - start


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(contender: Contender, device: str) -> int:
    """Return the peak of live bytes during a step, beyond those that were live before it."""
    contender.network.zero_grad()
    gc.collect()
    if device == "cpu":
        return peak_of_allocations(contender.step)
    wait(device)
    resting = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender.step()
    wait(device)
    return torch.cuda.max_memory_allocated() - resting


def peak_of_allocations(step: Callable[[], object]) -> int:
    """Return the peak of memory that torch's CPU allocator had handed out during the step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text())
    events = [event for event in trace["traceEvents"] if event.get("name") == "[memory]"]
    alive: dict[int, int] = {}
    total = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        address, n_bytes = event["args"]["Addr"], event["args"]["Bytes"]
        total -= alive.pop(address, 0)  # freed; unknown memory was there before the step
        if n_bytes > 0:
            alive[address] = n_bytes
            total += n_bytes
        peak = max(peak, total)
    if not peak:
        raise RuntimeError("torch.profiler reported no allocations.")
    return peak


def saved_at_most(step: Callable[[], object]) -> int:
    """Return the peak of bytes that autograd keeps: each storage once, without parameters."""
    alive: dict[
        int, list[int]
    ] = {}  # address: the number of kept tensors that share it, and its size
    total = peak = 0

    class Kept:
        def __init__(self, tensor: Tensor):
            self.tensor = tensor

    def keep(tensor: Tensor) -> Kept:
        nonlocal total, peak
        kept = Kept(tensor)
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            entry = alive.setdefault(storage.data_ptr(), [0, 0])
            if not entry[0]:
                entry[1] = storage.nbytes()
                total += entry[1]
            entry[0] += 1
            weakref.finalize(kept, release, storage.data_ptr())
            peak = max(peak, total)
        return kept

    def release(address: int) -> None:
        nonlocal total
        alive[address][0] -= 1
        if not alive[address][0]:
            total -= alive[address][1]

    with saved_tensors_hooks(keep, lambda kept: kept.tensor):
        step()
    return peak


def load(folder: Path | None, n_images: int, size: int, device: str) -> Batch:
    generator = torch.Generator().manual_seed(SEED)
    warp = ViewSampler()(n_images, size=(size, size), generator=generator)
    pixels = torch.randint(256, (n_images, 3, size, size), generator=generator).to(torch.uint8)
    labels = torch.arange(n_images) % 10
    if folder is not None:
        found = load_class_folders(folder)
        if len(found.data) < n_images:
            raise SystemExit(
                f"A batch needs {n_images} images, but {folder} has {len(found.data)}."
            )
        drawn = torch.randperm(len(found.data), generator=generator)[:n_images].tolist()
        images = ImageDataset([found.data[i] for i in drawn], image_size=size)
        pixels = torch.stack([images[i][0] for i in range(n_images)])
        labels = torch.from_numpy(np.searchsorted(found.target_names, found.target[drawn]))
    masks = torch.zeros(n_images, size, size)
    masks[:, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return Batch(pixels.to(device), labels.to(device), warp.to(device), masks.to(device))


def measure(
    arch: str,
    batch: Batch,
    repeats: int,
    setting: Setting,
    memories: list[str],
    layer: str,
    *,
    auto: bool,
    objectives: bool,
) -> None:
    print(f"\n{arch}", flush=True)
    device = setting.device
    torch._dynamo.reset()  # networks of one family share code, and the room for its variants
    field = contenders(arch, batch, setting, memories, layer, auto=auto, objectives=objectives)
    check_agreement(field, setting)
    for contender in field.values():  # warm-up
        seconds(contender.step, device)
    rounds = [
        {name: seconds(each.step, device) / each.n_steps for name, each in field.items()}
        for _ in range(repeats)
    ]
    peaks = {name: peak_memory(contender, device) for name, contender in field.items()}
    saved = {name: saved_at_most(contender.step) for name, contender in field.items()}
    times = {name: np.array([one[name] for one in rounds]) for name in field}
    print(
        f"  a plain step takes {np.median(times['plain']):.3f} s, {peaks['plain'] / 2**20:.0f} MiB "
        f"and {saved['plain'] / 2**20:.0f} MiB of saved tensors here; in multiples of it:"
    )
    for name in field:
        ratio = times[name] / times["plain"]
        kept = saved[name] / saved["plain"]
        line = (
            f"  {name:16}time {np.median(ratio):.2f} [{ratio.min():.2f} .. {ratio.max():.2f}]   "
            f"memory {peaks[name] / peaks['plain']:.2f}   saved {kept:.2f}"
        )
        if name in BARS:
            reached = [
                f"{bar} {'reached' if value <= bar else 'not reached'}"
                for value, bar in zip((np.median(ratio), kept), BARS[name], strict=True)
            ]
            line += f"   bars: time {reached[0]}, saved {reached[1]}"
        print(line, flush=True)


def count(arch: str, options: argparse.Namespace) -> None:
    """Print how many operations a step launches on a device, and how often the host waits."""
    from pretend_device import PretendDevice

    setting = Setting("pretend", options.precision, options.channels_last, compiled=False)
    rows = {"auto": options.auto, "objectives": options.objectives}
    with PretendDevice() as device:
        batch = load(None, options.batch_size, options.image_size, "pretend")
        memories = list(dict.fromkeys(options.memory))
        field = contenders(arch, batch, setting, memories, options.target_layer, **rows)
        del field["input gradient"]  # it cannot run everywhere in half precision
        found = {}
        for name, contender in field.items():
            contender.step()  # one-time work is done by then
            device.launches = 0
            device.waits.clear()
            contender.step()
            n_steps = contender.n_steps
            found[name] = device.launches / n_steps, device.waits.total() / n_steps
    plain = found["plain"][0]
    print(f"\n{arch}\n  a plain step is {plain:.0f} operations; in multiples of it:")
    for name, (launches, waits) in found.items():
        ratio = launches / plain
        bar = f"   bar: {MOST_LAUNCHES} {'' if ratio <= MOST_LAUNCHES else 'not '}reached"
        print(
            f"  {name:16}operations {ratio:.2f} ({launches:.0f})   waits {waits:.0f}"
            f"{bar if name == 'sklcam' else ''}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet18", "resnet50", "convnext_tiny"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--precision", default="fp32", choices=sorted(PRECISIONS))
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--memory", nargs="+", default=list(OURS), choices=OURS, help="which versions of sklcam"
    )
    parser.add_argument("--auto", action="store_true", help="also balanced weights")
    parser.add_argument("--objectives", action="store_true", help="also CGC, lazy terms and masks")
    parser.add_argument("--target-layer", default="auto")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--data", type=Path, help="folder of class folders; default: random pixels")
    parser.add_argument(
        "--count", action="store_true", help="count operations, by a pretended device"
    )
    options = parser.parse_args()

    if options.count:
        sys.path.append(str(Path(__file__).parents[1] / "tests"))
        print(f"torch {torch.__version__}, pretended device, batches of {options.batch_size}")
        for arch in options.arch:
            count(arch, options)
        return
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        hardware, meter = torch.cuda.get_device_name(), "torch.cuda's peak of allocated bytes"
    else:
        hardware, meter = platform.machine(), "peak of live allocations, by torch.profiler"
    pixels = "random pixels" if options.data is None else f"images of {options.data}"
    setting = Setting(device, options.precision, options.channels_last, options.compile)
    layout = "channels_last" if setting.channels_last else "contiguous"
    code = "compiled" if setting.compiled else "not compiled"
    memories = list(dict.fromkeys(options.memory))
    print(
        f"torch {torch.__version__} on {device} ({hardware}), {torch.get_num_threads()} threads, "
        f"{setting.precision}, {layout}, {code}\n"
        f"batches of {options.batch_size}, {pixels}, image size {options.image_size}\n"
        f"time: median [min .. max] over {options.repeats} rounds, each ratio within its round\n"
        f"memory: {meter}, in one step, above the resting state"
    )
    batch = load(options.data, options.batch_size, options.image_size, device)
    for arch in options.arch:
        layer = options.target_layer
        rows = {"auto": options.auto, "objectives": options.objectives}
        measure(arch, batch, options.repeats, setting, memories, layer, **rows)


if __name__ == "__main__":
    main()
