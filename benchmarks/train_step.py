"""What a training step with consistent explanations costs, beside a plain one.

Times one optimiser step (zero_grad, forward, loss, backward, SGD) and takes its peak memory, for

- plain: one view, cross-entropy;
- two views: a second forward pass, of weight zero: the floor of all that compares two views;
- sklcam: ``ConsistentCAMClassifier.train_step``, alpha 1, beta 1e-6, p 1;
- input gradient: the same loss with the map's gradient taken by way of the input, as
  pytorch-grad-cam's BaseCAM does with ``detach=False``: ``autograd.grad(score, input,
  create_graph=True)`` runs back through the whole network, and what passes the target layer is
  kept. (``backward(create_graph=True)`` would cost more: all parameters' gradients as well.)

All have the same uint8 images, weights and views. The two that compute the same loss must agree on
it and on its gradient, or the program stops.

    python benchmarks/train_step.py --arch resnet18 resnet50 convnext_tiny --batch-size 8

The images are random pixels unless ``--data DIR`` names a folder with one folder per class.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from sklcam import ConsistentCAMClassifier
from sklcam.cam import GradCAM, min_max, target_scores, upsample
from sklcam.images import ImageDataset, default_statistics, normalize
from sklcam.loss import ConsistentCAMLoss
from sklcam.models import TargetLayer
from sklcam.tape import record
from sklcam.views import Views, ViewSampler

BAR = 2.3  # times a plain step, on the CPU
LEARNING_RATE = 1e-3
SEED = 0
TOLERANCE = 1e-4  # relative, on the loss and on the 2-norm of the whole gradient


@dataclass(frozen=True)
class Batch:
    """What every contender gets: uint8 images, class indices, and one view per image."""

    pixels: Tensor
    labels: Tensor
    views: Views

    def images(self) -> Tensor:
        return normalize(self.pixels, *default_statistics(self.pixels.shape[1]))


@dataclass(frozen=True)
class RecordedViews(ViewSampler):
    """A "distribution" of one outcome, so that the classifier gets the others' views."""

    views: Views | None = None

    def __call__(self, n_images: int, **kwargs: object) -> Views:
        assert self.views is not None
        return self.views


@dataclass(frozen=True)
class Contender:
    """A network of its own, and what does one step on it and returns the loss."""

    network: nn.Module
    step: Callable[[], Tensor]


def plain_loss(network: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(network(batch.images()), batch.labels)


def two_views_loss(network: nn.Module, batch: Batch) -> Tensor:
    images = batch.images()
    cross_entropy = F.cross_entropy(network(images), batch.labels)
    return cross_entropy + 0 * network(batch.views(images)).sum()


def input_gradient_loss(network: nn.Module, batch: Batch, layer: TargetLayer) -> Tensor:
    def explain(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = network(images.requires_grad_())
        activations = tape.activations
        _, gradients = torch.autograd.grad(
            target_scores(logits).sum(), (images, activations), create_graph=True
        )
        maps = GradCAM(relu=False).combine(layer.to_grid(activations), layer.to_grid(gradients))
        return logits, min_max(upsample(maps, (images.shape[-2], images.shape[-1])))

    images = batch.images()
    view_images = batch.views(images)
    # Attention has a second derivative in its plain kernel only.
    with record(network, layer.of(network), trunk=True) as tape, sdpa_kernel(SDPBackend.MATH):
        logits, maps = explain(images)
        _, maps_of_view = explain(view_images)
    cross_entropy = F.cross_entropy(logits, batch.labels)
    return ConsistentCAMLoss()(cross_entropy, maps, batch.views(maps), maps_of_view).total


def own_loop(network: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> Contender:
    """Train a copy of the network as one does by hand, with the classifier's optimiser."""
    network = copy.deepcopy(network).train()
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, 0.9, weight_decay=1e-4)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(network)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Contender(network, step)


@contextmanager
def contenders(arch: str, batch: Batch, device: str) -> Iterator[dict[str, Contender]]:
    height, width = batch.pixels.shape[-2:]
    classifier = ConsistentCAMClassifier(
        arch,
        image_size=(height, width),
        augment=None,
        views=RecordedViews(views=batch.views),
        lr=LEARNING_RATE,
        max_epochs=0,
        device=device,
        random_state=SEED,
        verbose=0,
    )
    classes = range(max(2, int(batch.labels.max()) + 1))
    classifier.partial_fit(batch.pixels.cpu(), batch.labels.cpu(), classes=classes)
    by_input = partial(input_gradient_loss, batch=batch, layer=classifier.target_layer_)

    def explained_step() -> Tensor:
        with classifier._double_differentiable_attention():
            return classifier.train_step((batch.pixels, batch.labels))["loss"].detach()

    # Here and above: what fit_loop puts around its steps.
    with classifier._own_randomness():
        classifier.history.new_epoch()
        classifier.history.new_batch()
        yield {
            "plain": own_loop(classifier.module_, partial(plain_loss, batch=batch)),
            "two views": own_loop(classifier.module_, partial(two_views_loss, batch=batch)),
            "sklcam": Contender(classifier.module_, explained_step),
            "input gradient": own_loop(classifier.module_, by_input),
        }


def loss_and_gradient(contender: Contender) -> tuple[Tensor, Tensor]:
    torch.manual_seed(SEED)  # dropout and stochastic depth
    loss = contender.step()
    parameters = contender.network.parameters()
    return loss, torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def drop_what_cannot_run(field: dict[str, Contender]) -> None:
    """Check that both sides compute the same; go on without the input gradient if it fails."""
    ours = loss_and_gradient(field["sklcam"])
    try:
        theirs = loss_and_gradient(field["input gradient"])
    except RuntimeError as error:  # out of memory is one, too
        reason = str(error).partition("\n")[0]
        print(f"  input gradient cannot run, agreement is unchecked: {reason}")
        del field["input gradient"]
        return
    in_loss, in_gradient = (
        float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True)
    )
    found = f"loss differs by {in_loss:.0e}, gradient by {in_gradient:.0e}"
    if not (in_loss <= TOLERANCE and in_gradient <= TOLERANCE):  # as NaN is not, either
        raise SystemExit(f"sklcam and input gradient disagree: {found}")
    print(f"  sklcam and input gradient agree: {found}; {TOLERANCE:.0e} is allowed")


def seconds(step: Callable[[], Tensor], device: str) -> float:
    gc.collect()  # nobody pays for another's garbage
    wait(device)
    start = time.perf_counter()
    step()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(contender: Contender, device: str) -> int:
    """Most bytes alive at once during a step, beyond those that were alive before it."""
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
    """Peak of what torch's CPU allocator handed out during the step and had not yet got back."""
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
        total -= alive.pop(address, 0)  # freed; what is unknown was there before the step
        if n_bytes > 0:
            alive[address] = n_bytes
            total += n_bytes
        peak = max(peak, total)
    if not peak:
        raise RuntimeError("torch.profiler reported no allocations.")
    return peak


def load(folder: Path | None, n_images: int, size: int, device: str) -> Batch:
    generator = torch.Generator().manual_seed(SEED)
    views = ViewSampler()(n_images, size=(size, size), generator=generator)
    pixels = torch.randint(256, (n_images, 3, size, size), generator=generator).to(torch.uint8)
    labels = torch.arange(n_images) % 10
    if folder is not None:
        kinds = (".jpg", ".jpeg", ".png")
        paths = [path for path in sorted(folder.glob("*/*")) if path.suffix.lower() in kinds]
        if len(paths) < n_images:
            raise SystemExit(f"A batch needs {n_images} images; {folder}/*/ has {len(paths)}.")
        names = sorted({path.parent.name for path in paths})
        drawn = [paths[i] for i in torch.randperm(len(paths), generator=generator)[:n_images]]
        images = ImageDataset(drawn, image_size=size)
        pixels = torch.stack([images[i][0] for i in range(n_images)])
        labels = torch.tensor([names.index(path.parent.name) for path in drawn])
    return Batch(pixels.to(device), labels.to(device), views.to(device))


def measure(arch: str, batch: Batch, repeats: int, device: str) -> None:
    print(f"\n{arch}", flush=True)
    with contenders(arch, batch, device) as field:
        drop_what_cannot_run(field)
        for contender in field.values():  # warm-up
            seconds(contender.step, device)
        rounds = [
            {name: seconds(contender.step, device) for name, contender in field.items()}
            for _ in range(repeats)
        ]
        peaks = {name: peak_memory(contender, device) for name, contender in field.items()}
    times = {name: np.array([one[name] for one in rounds]) for name in field}
    print(
        f"  a plain step takes {np.median(times['plain']):.3f} s and {peaks['plain'] / 2**20:.0f} "
        "MiB here; in multiples of it:"
    )
    ratios = {name: times[name] / times["plain"] for name in field}
    for name, ratio in ratios.items():
        print(
            f"  {name:16}time {np.median(ratio):.2f} [{ratio.min():.2f} .. {ratio.max():.2f}]   "
            f"memory {peaks[name] / peaks['plain']:.2f}"
        )
    if device == "cpu":
        reached = "reached" if np.median(ratios["sklcam"]) <= BAR else "not reached"
        print(f"  bar: sklcam <= {BAR} x plain in time on CPU: {reached}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet18", "resnet50", "convnext_tiny"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--data", type=Path, help="folder of class folders; else random pixels")
    options = parser.parse_args()

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        hardware, meter = torch.cuda.get_device_name(), "torch.cuda's peak of allocated bytes"
    else:
        hardware, meter = platform.machine(), "peak of live allocations, by torch.profiler"
    pixels = "random pixels" if options.data is None else f"images of {options.data}"
    print(
        f"torch {torch.__version__} on {device} ({hardware}), {torch.get_num_threads()} threads\n"
        f"batches of {options.batch_size}, {pixels}, image size {options.image_size}\n"
        f"time: median [min .. max] over {options.repeats} rounds, each ratio within its round\n"
        f"memory: {meter}, in one step, above the resting state"
    )
    batch = load(options.data, options.batch_size, options.image_size, device)
    for arch in options.arch:
        measure(arch, batch, options.repeats, device)


if __name__ == "__main__":
    main()
