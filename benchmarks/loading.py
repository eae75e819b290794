"""Whether training waits for its images, beside torchvision's usual pipeline.

For each number of workers, the program measures, in images per second,

- loader: the loader alone, without training;
- steps: training steps on a batch that is already on the device;
- epoch: an epoch in which the loader feeds the steps, and the share of it spent waiting for the
  next batch.

sklcam's workers return bytes, which are normalised on the device. The peer does what torchvision's
examples do: ``ImageFolder`` with ``Resize``, ``ToTensor`` and ``Normalize`` in the workers, which
return float32. Both read the same files, and their pixels must agree. The same
``ConsistentCAMClassifier.train_step`` trains on both, without augmentation, which sklcam does on
the device and the peer in the workers. ``--plain`` leaves out the terms on explanations, so a step
is faster, and demands more of the loader. An epoch includes the start of its workers.

    python benchmarks/loading.py --data caltech101/train --workers 0 2 4 --arch resnet50

Without ``--data DIR``, a folder with one folder per class, the program writes JPEG files of 500 x
375 pixels itself.
"""

from __future__ import annotations

import argparse
import gc
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.base import clone
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from sklcam import ConsistentCAMClassifier
from sklcam.datasets import load_class_folders
from sklcam.images import ImageDataset, default_statistics

SEED = 0
SIZE_WRITTEN = (500, 375)
N_CLASSES_WRITTEN = 5
# In grey levels: Pillow and torch round to whole ones, each in its own order.
TOLERANCE = 1.5
OURS, PEER = "sklcam", "torchvision"


@dataclass(frozen=True)
class Pipeline:
    """A classifier, and a function that makes a loader with a number of workers."""

    clf: ConsistentCAMClassifier
    loader: Callable[[int], Iterable]

    @contextmanager
    def training(self) -> Iterator[None]:
        """Run the code that fit_loop puts around its steps."""
        with self.clf._own_randomness(), self.clf._differentiating():
            yield

    def step(self, batch: tuple[Tensor, Tensor]) -> float:
        return self.clf.train_step(batch)["loss"].item()  # as fit_loop reads it


@dataclass(frozen=True)
class Setting:
    arch: str
    device: str
    batch_size: int
    image_size: int
    plain: bool


def classifier(module: object, n_classes: int, setting: Setting, **options: object):
    """Return an untrained classifier that knows its classes."""
    weights = {"alpha": 0, "beta": 0} if setting.plain else {}
    clf = ConsistentCAMClassifier(
        module,
        image_size=setting.image_size,
        batch_size=setting.batch_size,
        augment=None,
        max_epochs=0,
        device=setting.device,
        random_state=SEED,
        verbose=0,
        **weights,
        **options,
    )
    labels = np.tile(np.arange(n_classes), 3)
    clf.fit(np.zeros((len(labels), 8, 8, 3), np.uint8), labels)
    clf.history.new_epoch()
    clf.history.new_batch()
    return clf


def pipelines(folder: Path, n_images: int, setting: Setting) -> dict[str, Pipeline]:
    mean, std = default_statistics(3)
    size = (setting.image_size, setting.image_size)
    usual = [transforms.Resize(size), transforms.ToTensor(), transforms.Normalize(mean, std)]
    load_class_folders(folder)  # folders of splits are refused
    files = ImageFolder(str(folder), transforms.Compose(usual))
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randperm(len(files), generator=generator)[:n_images].tolist()
    if len(drawn) < n_images:
        raise SystemExit(f"{folder} has {len(files)} images, but {n_images} are needed.")
    paths, labels = zip(*(files.samples[i] for i in drawn), strict=True)
    ours = ImageDataset(list(paths), list(labels), image_size=size)
    theirs = Subset(files, drawn)
    check_pixels(ours, theirs, mean, std)

    clf = classifier(setting.arch, len(files.classes), setting)
    of_peer = classifier(clf.module_, len(files.classes), setting, mean=0.0, std=1.0)

    def our_loader(workers: int) -> Iterable:
        unfitted = clone(clf).set_params(iterator_train__num_workers=workers)
        return unfitted.get_iterator(ours, training=True)

    def their_loader(workers: int) -> Iterable:
        return DataLoader(
            theirs,
            batch_size=setting.batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=setting.device == "cuda",
        )

    return {OURS: Pipeline(clf, our_loader), PEER: Pipeline(of_peer, their_loader)}


def check_pixels(
    ours: ImageDataset, theirs: Subset, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Check that the first images agree in both pipelines."""
    worst = 0.0
    for i in range(min(32, len(theirs))):
        pixels, label = ours[i]
        normalized, other = theirs[i]
        levels = 255 * (normalized * torch.tensor(std)[:, None, None])
        levels += 255 * torch.tensor(mean)[:, None, None]
        worst = max(worst, float((levels - pixels).abs().max()))
        if label != other or not worst <= TOLERANCE:
            raise SystemExit(
                f"The pipelines disagree: image {i} differs by {worst:.1f} grey levels."
            )
    print(f"pixels agree: they differ by at most {worst:.2f} grey levels; {TOLERANCE} is allowed")


def alone(loader: Iterable) -> float:
    """Return the seconds that a loader takes to deliver all its batches."""
    gc.collect()
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def steps(pipeline: Pipeline, batch: tuple[Tensor, Tensor], n_batches: int) -> float:
    """Return the seconds that training takes on one batch, again and again."""
    gc.collect()
    with pipeline.training():
        start = time.perf_counter()
        for _ in range(n_batches):
            pipeline.step(batch)
        return time.perf_counter() - start


def epoch(pipeline: Pipeline, loader: Iterable) -> tuple[float, float]:
    """Return the seconds that an epoch takes, and those spent waiting for a batch."""
    gc.collect()
    waiting = 0.0
    with pipeline.training():
        start = asked = time.perf_counter()
        for batch in loader:
            waiting += time.perf_counter() - asked
            pipeline.step(batch)
            asked = time.perf_counter()
        end = time.perf_counter()
    return end - start, waiting + end - asked


def measure(
    field: dict[str, Pipeline], workers: list[int], repeats: int, n_images: int, device: str
) -> None:
    batches = {}
    for name, pipeline in field.items():
        images, labels = next(iter(pipeline.loader(0)))
        print(f"{name}: {images.nbytes / len(images):,.0f} bytes per image, {images.dtype}")
        batches[name] = images.to(device), labels.to(device)
        steps(pipeline, batches[name], 2)  # warm-up
    n_batches = n_images // len(batches[OURS][0])

    seconds: dict[tuple, list[float]] = {}
    for turn in range(repeats):
        names = list(field) if turn % 2 == 0 else list(field)[::-1]  # take turns at going first
        for name in names:
            took = steps(field[name], batches[name], n_batches)
            seconds.setdefault(("steps", name), []).append(took)
        for n in workers:
            for name in names:
                took = alone(field[name].loader(n))
                seconds.setdefault(("loader", n, name), []).append(took)
            for name in names:
                took, waited = epoch(field[name], field[name].loader(n))
                seconds.setdefault(("epoch", n, name), []).append(took)
                seconds.setdefault(("waiting", n, name), []).append(waited / took)

    print("\nsteps alone")
    report("images/s", n_images / series(seconds, "steps"))
    for n in workers:
        print(f"{n} workers")
        report("loader", n_images / series(seconds, "loader", n))
        report("epoch", n_images / series(seconds, "epoch", n))
        shares = 100 * series(seconds, "waiting", n)
        ours, theirs = (spread(row, "{:.0f}") for row in shares)
        print(f"  {'waiting':10}{OURS} {ours} %   {PEER} {theirs} %", flush=True)


def series(seconds: dict[tuple, list[float]], *what: object) -> np.ndarray:
    """Print results; ours are in the first row, the peer's in the second, one column per round."""
    return np.array([seconds[(*what, name)] for name in (OURS, PEER)])


def report(what: str, rates: np.ndarray) -> None:
    ours, theirs = (f"{np.median(row):.1f}" for row in rates)
    ratio = spread(rates[0] / rates[1], "{:.2f}")
    print(f"  {what:10}{OURS} {ours}   {PEER} {theirs}   ratio {ratio}", flush=True)


def spread(values: np.ndarray, form: str) -> str:
    low, middle, high = (form.format(f(values)) for f in (np.min, np.median, np.max))
    return f"{middle} [{low} .. {high}]"


def write_images(folder: Path, n_images: int) -> None:
    """Write smooth random images, which take about as long to decode as photographs."""
    rng = np.random.default_rng(SEED)
    for i in range(n_images):
        path = folder / str(i % N_CLASSES_WRITTEN) / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize(SIZE_WRITTEN, Image.Resampling.BICUBIC).save(path, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of class folders; default: written here")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=20, help="batches in an epoch")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--plain", action="store_true", help="train without explanations")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    hardware = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    setting = Setting(options.arch, device, options.batch_size, options.image_size, options.plain)
    n_images = options.batches * options.batch_size
    print(
        f"torch {torch.__version__} on {device} ({hardware}), {torch.get_num_threads()} threads\n"
        f"{setting.arch}, {'plain steps' if setting.plain else 'steps with explanations'}, image "
        f"size {setting.image_size}, epochs of {options.batches} batches of {setting.batch_size}\n"
        f"median [min .. max] over {options.repeats} rounds, each ratio within its round"
    )
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            write_images(Path(folder), n_images)
        field = pipelines(options.data or Path(folder), n_images, setting)
        measure(field, options.workers, options.repeats, n_images, device)


if __name__ == "__main__":
    main()
