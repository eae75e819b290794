"""Table 2 of Poppi et al.: CAM methods by average drop, deletion, insertion, ADCC and the rest.

Evaluates each method on each network, on the same test images, and prints a row as soon as it is
known. Networks without weights are first trained from scratch, at half the image size and then, for
a few epochs, at the full one. In the end the program checks what the paper claims of its control,
FakeCAM, and of XGrad-CAM, and fails if it is not so.

    python benchmarks/cam_evaluation.py --data DIR --arch resnet18 vgg_small \
        --save-weights weights --rst table.rst
    python benchmarks/cam_evaluation.py --data DIR --arch resnet18 --weights weights/resnet18.pt

DIR holds ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``. What is explained is the predicted
class. Insertion starts from the blurred image, deletion ends at the mean colour. ADCC is the
harmonic mean of the averages in its row; its interval of 95 % is by bootstrap over the images.

``vgg_small`` is the network on which XGrad-CAM and Grad-CAM differ: a VGG-11 with batch
normalisation at a quarter of the width, and two hidden layers after the pooled features, small
enough to train on a CPU. After a ResNet's last block come only the mean over positions and a
linear layer, so that the gradient is the same everywhere, and the two methods are one.

Reference: Poppi, Cornia, Baraldi, Cucchiara, "Revisiting The Evaluation of Class Activation Mapping
for Explainability", CVPR Workshops 2021.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor, nn
from torchvision.models.vgg import VGG, cfgs, make_layers

from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.cam import available, get_method
from sklcam.images import ImageDataset
from sklcam.metrics import evaluate
from sklcam.networks import available_models, build_model, load_weights, record

PAPER = ("fakecam", "gradcam", "xgradcam", "gradcam++", "smoothgradcam++", "scorecam")  # its order
METHODS = (*PAPER, "layercam", "ablationcam")
COLUMNS = {
    "average_drop": "Avg drop ↓",
    "average_increase": "Avg increase ↑",
    "dauc": "Deletion ↓",
    "iauc": "Insertion ↑",
    "coherency": "Coherency ↑",
    "complexity": "Complexity ↓",
    "adcc": "ADCC ↑",
}
HEADER = ["Method", *COLUMNS.values(), "95 % interval"]
SAME = 0.1  # points between figures of methods that are one
RESIZE = "center_crop"  # as in the paper, section 4
WEIGHTS = "state dicts, in the order of --arch; networks beyond these are trained"

say = partial(print, file=sys.stderr, flush=True)


class VGGSmall(VGG):
    """VGG-11 with batch normalisation, a quarter as wide, with a head of two hidden layers."""

    def __init__(self, num_classes: int):
        nn.Module.__init__(self)  # VGG's own would first make a head of 120 million weights
        widths = [entry if entry == "M" else entry // 4 for entry in cfgs["A"]]
        self.features = make_layers(widths, batch_norm=True)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(widths[-2] * 7 * 7, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, num_classes),
        )


# Images


def files_of(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    """Return the images of the classes, and the class of each."""
    paths = [path for name in classes for path in sorted((folder / name).glob("*.jpg"))]
    return paths, np.array([path.parent.name for path in paths])


def drawn_evenly(paths: list[Path], n_images: int, seed: int) -> list[Path]:
    """Draw as many of each class, to within one, as long as a class has as many."""
    if n_images > len(paths):
        raise SystemExit(f"--images {n_images}: there are only {len(paths)} test images.")
    generator = np.random.default_rng(seed)
    labels = np.array([path.parent.name for path in paths])
    turns = np.empty(len(paths))
    for name in np.unique(labels):
        turns[labels == name] = generator.permutation((labels == name).sum())
    # Within a turn in random order, so that an uneven rest does not go to the first classes.
    order = np.lexsort((generator.random(len(paths)), turns))
    return [paths[i] for i in sorted(order[:n_images])]


def decoded(paths: list[Path], size: int) -> np.ndarray:
    """Return the images as uint8 (n_images, size, size, 3)."""
    images = ImageDataset(paths, image_size=size, resize=RESIZE)
    return np.stack([images[i][0].permute(1, 2, 0).numpy() for i in range(len(paths))])


@cache
def training_images(
    data: Path, classes: tuple[str, ...], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Decode the training images when a network first asks for them, and only once a size."""
    paths, labels = files_of(data / "train", classes)
    return decoded(paths, size), labels


# Networks


def trained(arch: str, classes: tuple[str, ...], options: argparse.Namespace) -> nn.Module:
    """Train a network: most epochs on small images, and the last ones on those of full size.

    The rate is cut to a tenth after two thirds of the epochs on small images, and stays there.
    """
    stages = (
        (options.image_size // 2, options.epochs_small, options.lr),
        (options.image_size, options.epochs_full, options.lr / 10),
    )
    module = VGGSmall if arch == "vgg_small" else arch
    for size, epochs, lr in stages:
        say(f"{arch}: training for {epochs} epochs at {size} pixels")
        clf = ConsistentCAMClassifier(
            module,
            alpha=0,
            beta=0,
            image_size=size,
            resize=RESIZE,
            lr=lr,
            max_epochs=epochs,
            batch_size=options.training_batch_size,
            callbacks__lr_scheduler__step_size=max(1, 2 * options.epochs_small // 3),
            callbacks__progress_bar=None,
            callbacks__print_log__sink=say,
            device=options.device,
            random_state=options.random_state,
        )
        module = clf.fit(*training_images(options.data, classes, size)).module_
    return module


def network_of(
    arch: str, weights: Path | None, classes: tuple[str, ...], options: argparse.Namespace
) -> nn.Module:
    """Return a trained network in evaluation mode: that of the weights, or one trained here."""
    if weights is None:
        network = trained(arch, classes, options)
        if options.save_weights is not None:
            save(network, options.save_weights / f"{arch}.pt")
    else:
        check_head(weights, len(classes))
        small = arch == "vgg_small"
        network = VGGSmall(len(classes)) if small else build_model(arch, n_classes=len(classes))
        load_weights(network, weights)
    return network.to(options.device).eval()


def check_head(weights: Path, n_classes: int) -> None:
    """Refuse weights of other classes, whose head would be replaced by a random one."""
    state = torch.load(weights, weights_only=True, map_location="cpu")
    head = next(name for name in reversed(state) if name.endswith(".weight"))
    if len(state[head]) != n_classes:
        raise SystemExit(f"{weights} is for {len(state[head])} classes, not for {n_classes}.")


def save(network: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    torch.save({name: value.cpu() for name, value in network.state_dict().items()}, unfinished)
    os.replace(unfinished, path)


def has_uniform_gradients(explainer: CAMExplainer, inputs: Tensor) -> bool:
    """Whether a score's gradient at the layer is the same at all positions, as pooling makes it."""
    network, layer = explainer.model, explainer.target_layers_[0]
    with record(network, layer.of(network)) as tape:
        highest = network(inputs).amax(dim=1).sum()
        (gradients,) = torch.autograd.grad(highest, tape.activations)
    gradients = layer.to_grid(gradients)
    spread = (gradients.amax(dim=(2, 3)) - gradients.amin(dim=(2, 3))).max()
    return bool(spread <= 1e-4 * gradients.abs().max())


# Evaluation


def figures_of(
    explainer: CAMExplainer, images: np.ndarray, name: str, options: argparse.Namespace
) -> Bunch:
    """Evaluate one method: each column in per cent, and ``low`` and ``high`` of ADCC."""
    method = get_method(name)
    if "random_state" in method.get_params(deep=False):
        method.set_params(random_state=options.random_state)
    result = evaluate(
        explainer,
        images,
        metrics=("adcc", "average_increase", "iauc", "dauc"),
        method=method,
        metric_params={"iauc": {"n_steps": options.n_steps}},
        random_state=options.random_state,
        progress=False,
    )
    summary = result.summary(random_state=options.random_state)
    figures = Bunch(**{column: 100 * summary[column].mean for column in COLUMNS})
    return Bunch(low=100 * summary["adcc"].low, high=100 * summary["adcc"].high, **figures)


def evaluate_arch(
    arch: str,
    weights: Path | None,
    data: Bunch,
    tables: dict[str, Bunch],
    options: argparse.Namespace,
) -> None:
    """Add a network's table to the tables, row after row."""
    explainer = CAMExplainer(
        network_of(arch, weights, data.classes, options),
        classes=data.classes,
        image_size=options.image_size,
        resize=RESIZE,
        batch_size=options.batch_size,
        verbose=0,
    ).fit()
    inputs = next(explainer.iter_inputs(data.images[:4]))
    table = tables[arch] = Bunch(
        accuracy=100 * explainer.score(*data.test),
        uniform=has_uniform_gradients(explainer, inputs),
        rows={},
    )
    print(f"\n{title(arch, table, options)}\n{aligned(HEADER)}", flush=True)
    for i, name in enumerate(options.methods, 1):
        say(f"{arch}: {name}, method {i} of {len(options.methods)}, {time.strftime('%H:%M:%S')}")
        table.rows[name] = figures_of(explainer, data.images, name, options)
        print(aligned([name, *cells(table.rows[name])]), flush=True)
        if options.rst is not None:
            write_rst(tables, options)


# Reporting


def title(arch: str, table: Bunch, options: argparse.Namespace) -> str:
    return (
        f"{arch}, {options.classes} classes, {table.accuracy:.1f} % of all test images right; "
        f"{options.images} of them explained at {options.image_size} pixels"
    )


def cells(row: Bunch) -> list[str]:
    return [*(f"{row[name]:.2f}" for name in COLUMNS), f"{row.low:.2f}–{row.high:.2f}"]


def aligned(texts: list[str]) -> str:
    return f"{texts[0]:16}" + "".join(f"{text:>16}" for text in texts[1:])


def write_rst(tables: dict[str, Bunch], options: argparse.Namespace) -> None:
    """Write the tables so far as list-tables."""
    command = " ".join(sys.argv[1:]).replace(str(options.data), "DIR")
    lines = [f".. Made by benchmarks/cam_evaluation.py {command}", ""]
    for arch, table in tables.items():
        rows = [HEADER, *([name, *cells(row)] for name, row in table.rows.items())]
        lines += [f".. list-table:: {title(arch, table, options)}", "   :header-rows: 1", ""]
        lines += ["   * - " + "\n     - ".join(row) for row in rows]
        lines += [""]
    options.rst.parent.mkdir(parents=True, exist_ok=True)
    unfinished = options.rst.with_name(f"{options.rst.name}.part")
    unfinished.write_text("\n".join(lines), encoding="utf-8")
    os.replace(unfinished, options.rst)


# The claims


def claims_of(table: Bunch) -> list[tuple[bool, str]]:
    """Return what should be so of one network's table, and whether it is."""
    rows, claims = table.rows, []
    if "fakecam" in rows:
        fake, others = rows["fakecam"], [rows[name] for name in rows if name != "fakecam"]
        least_drop = all(fake.average_drop <= row.average_drop for row in others)
        least_adcc = all(fake.adcc < row.adcc for row in others)
        claims += [
            (least_drop, "FakeCAM has the lowest average drop"),
            (least_adcc, "FakeCAM has the lowest ADCC"),
            (f"{fake.coherency:.2f}" == "100.00", "FakeCAM has a coherency of 100.00"),
            (f"{fake.complexity:.2f}" == "100.00", "FakeCAM has a complexity of 100.00"),
        ]
    if {"gradcam", "xgradcam"} <= rows.keys():
        apart = max(abs(rows["gradcam"][name] - rows["xgradcam"][name]) for name in COLUMNS)
        text = f"XGrad-CAM is {apart:.2f} points from Grad-CAM at most, and should be Grad-CAM"
        if table.uniform:  # nothing is left that the two would weigh differently
            claims += [(apart <= SAME, text)]
        else:
            claims += [(apart > SAME, text.replace("should be", "should not be"))]
    return claims


# The program


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classes", type=int, default=20, help="the first N, by name")
    parser.add_argument("--arch", nargs="+", default=["resnet18", "vgg_small"], metavar="NAME")
    parser.add_argument("--weights", nargs="+", type=Path, default=[], help=WEIGHTS)
    parser.add_argument("--save-weights", type=Path, metavar="DIR", help="of what is trained")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=100, help="drawn evenly from the classes")
    parser.add_argument("--n-steps", type=int, default=28, help="of insertion and deletion")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=available(), metavar="M")
    parser.add_argument("--epochs-small", type=int, default=30, help="at half the image size")
    parser.add_argument("--epochs-full", type=int, default=6)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--training-batch-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32, help="of explanations")
    parser.add_argument("--random-state", type=int, default=0)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rst", type=Path, metavar="FILE", help="also write reStructuredText")
    options = parser.parse_args()
    for arch in options.arch:
        if arch not in ("vgg_small", *available_models()):
            parser.error(f"--arch: {arch!r} is neither vgg_small nor one of torchvision's")
    if len(options.weights) > len(options.arch):
        parser.error("--weights takes at most one file for each --arch")
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def main() -> None:
    options = parse()
    names = sorted(path.name for path in (options.data / "train").iterdir())
    classes = tuple(names[: options.classes])
    options.classes = len(classes)
    paths, labels = files_of(options.data / "test", classes)
    chosen = drawn_evenly(paths, options.images, options.random_state)
    data = Bunch(classes=classes, test=(paths, labels), images=decoded(chosen, options.image_size))
    print(
        f"torch {torch.__version__} on {options.device}, {options.n_steps} steps of insertion and "
        f"deletion, random state {options.random_state}; in per cent, ADCC of averages"
    )
    tables: dict[str, Bunch] = {}
    weights = [*options.weights, *[None] * (len(options.arch) - len(options.weights))]
    for arch, file in zip(options.arch, weights, strict=True):
        evaluate_arch(arch, file, data, tables, options)
    print()
    claims = [(arch, *claim) for arch, table in tables.items() for claim in claims_of(table)]
    for arch, holds, text in claims:
        print(f"{arch}: {text}: {'yes' if holds else 'NO'}")
    if not all(holds for _, holds, _ in claims):
        raise SystemExit("Not all that should be so is so.")


if __name__ == "__main__":
    main()
