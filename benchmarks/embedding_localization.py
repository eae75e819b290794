"""Table 1 of Bachhawat: where the explanations of embedding networks lie, against boxes.

Trains embedding networks from scratch, from several initialisations, explains images with boxes,
and prints the mean heatmap ratio and the localisation accuracy (IoU 0.5) of the uniform map, of
Chen et al.'s transferred weights, of EmbeddingCAM with single points and with mean proxies, and of
mean proxies set off against those of the other classes (``contrast=True``).

    python benchmarks/embedding_localization.py --data DIR --weights weights --rst table.rst

What is in DIR decides on the protocol:

``boxes.csv``, of the columns ``path, label, x1, y1, x2, y2``: images of one class are split into
    those that train and those that are explained, each for its own class. In images of several
    classes the pointing game is played: whether the map for a class is highest in one of its boxes.

``train/<class>``, ``test/<class>`` and ``<unseen>_boxes.csv``, of the columns ``path, x1, y1, x2,
    y2``: the paper's open set. The network is trained on half of the classes, every other one by
    name, without the unseen one, whose images are explained. Its mean proxy is that of the images
    themselves, as in the paper, and is set off against those of the classes of the other half, of
    their test images; Chen et al.'s weights are those of the nearest training image. How well the
    network separates classes is its recall at 1 on the test images of the other half.

A network is trained at half the image size first. With ``--weights`` it is kept in that folder, and
a run that was cut off goes on where it stopped.

In the end the program checks that pytorch-grad-cam has the same maps, and which of the paper's
claims hold. It fails if maps differ, or if proxies of classes that the network was trained on do
not beat the uniform map by ``--margin``.

Reference: Bachhawat, "Generalizing GradCAM for Embedding Networks", section 4. Chen et al.,
"Adapting Grad-CAM for Embedding Networks", WACV 2020.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pytorch_grad_cam
import torch
from sklearn.utils import Bunch
from torch import Tensor
from train_step import seconds

from sklcam import EmbeddingCAMExplainer, EmbeddingNet
from sklcam.datasets import load_boxes_csv
from sklcam.embeddings import TripletCAM
from sklcam.images import ImageDataset
from sklcam.metrics import (
    box_from_map,
    box_masks,
    heatmap_ratio,
    localization_accuracy,
    pointing_game,
    recall_at_k,
)
from sklcam.networks import available_models, build_model, load_weights

METHODS = ("Chen et al.", "Single point", "Mean proxy", "Contrast")
CHANNELS = {"all channels": None, "top 50": 50}
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
USUAL = 0.2  # the paper's threshold
TOLERANCE = 1e-3  # on the largest difference to a peer's map in [0, 1]

say = partial(print, file=sys.stderr, flush=True)


# Images


class Images:
    """Images and the boxes in them, decoded when a size is first asked for."""

    def __init__(self, paths: Sequence[str], labels: Sequence[str], boxes: Sequence | None = None):
        self.paths, self.labels = list(paths), np.asarray(labels)
        self._boxes = boxes
        self._decoded: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def at(self, size: int) -> np.ndarray:
        """Return the images as uint8 (n_images, size, size, 3)."""
        if size not in self._decoded:
            images = ImageDataset(self.paths, image_size=size)
            self._decoded[size] = np.stack(
                [images[i][0].permute(1, 2, 0).numpy() for i in range(len(self))]
            )
        return self._decoded[size]

    def boxes(self, size: int) -> list[Tensor]:
        """Return each image's boxes in pixels of the images at that size."""
        images = ImageDataset(self.paths, image_size=size)
        scaled = []
        for i, of_image in enumerate(self._boxes):
            height, width = images.original_size(i)
            factors = np.array([size / width, size / height] * 2)
            scaled.append(torch.from_numpy(np.asarray(of_image) * factors))
        return scaled


def fruits(folder: Path, n_train: float) -> Bunch:
    """Images of one class each, split by a fixed seed; and the mixed scenes."""
    table = load_boxes_csv(folder / "boxes.csv")
    n_classes = {path: table.data.count(path) for path in set(table.data)}
    alone = [i for i, path in enumerate(table.data) if n_classes[path] == 1]
    mixed = [i for i, path in enumerate(table.data) if n_classes[path] > 1]
    alone = np.random.default_rng(0).permutation(alone).tolist()
    cut = round(n_train * len(alone))

    def part(rows: list[int]) -> Images:
        boxes = [table.boxes[i] for i in rows]
        return Images([table.data[i] for i in rows], table.target[rows], boxes)

    explained = part(alone[cut:])
    scenes = part(mixed) if mixed else None
    # Seen and unseen classes are the same here, and the proxies those of the training images.
    train = part(alone[:cut])
    return Bunch(
        train=train,
        proxies=train,
        explained=explained,
        judged=explained,
        scenes=scenes,
        seen=True,
    )


def open_set(folder: Path, boxes_file: Path) -> Bunch:
    """Half of the classes to train on, the test images of the others, and one of these in boxes."""
    unseen = boxes_file.name.removesuffix("_boxes.csv")
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.name != unseen)
    seen, others = classes[::2], [*classes[1::2], unseen]

    def part(subset: str, names: list[str]) -> Images:
        paths = [path for name in names for path in sorted((folder / subset / name).glob("*.jpg"))]
        return Images([str(path) for path in paths], [path.parent.name for path in paths])

    with boxes_file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    corners = [[[float(row[name]) for name in ("x1", "y1", "x2", "y2")]] for row in rows]
    paths = [str(folder / row["path"]) for row in rows]
    explained = Images(paths, [unseen] * len(rows), corners)
    against = part("test", classes[1::2])
    proxies = Images([*against.paths, *paths], [*against.labels, *explained.labels])
    return Bunch(
        train=part("train", seen),
        proxies=proxies,
        explained=explained,
        judged=part("test", others),
        scenes=None,
        seen=False,
    )


def read(folder: Path, options: argparse.Namespace) -> Bunch:
    if (folder / "boxes.csv").is_file():
        return fruits(folder, options.train_share)
    found = sorted(folder.glob("*_boxes.csv"))
    if not found:
        raise SystemExit(f"{folder} holds neither boxes.csv nor <class>_boxes.csv.")
    return open_set(folder, found[0])


# Networks


def network_of(init: int, data: Bunch, options: argparse.Namespace) -> EmbeddingNet:
    """Return a network that is trained from this initialisation, here or in an earlier run."""
    file = None if options.weights is None else options.weights / f"{options.arch}_{init}.pt"
    if file is not None and file.is_file():
        module = build_model(options.arch, n_classes=options.embedding_dim)
        return untrained(load_weights(module, file), options).fit(*training(data, options, 3))
    module = options.arch
    for size, epochs, lr in (
        (options.image_size // 2, options.epochs_small, options.lr),
        (options.image_size, options.epochs_full, options.lr / 10),
    ):
        say(f"network {init}: {epochs} epochs at {size} pixels, {time.strftime('%H:%M:%S')}")
        net = untrained(module, options).set_params(
            image_size=size,
            lr=lr,
            proxy_lr=options.proxy_lr * lr / options.lr,
            max_epochs=epochs,
            random_state=init,
        )
        module = net.fit(data.train.at(size), data.train.labels).module_
    if file is not None:
        save(net, file)
    return net


def untrained(module: object, options: argparse.Namespace) -> EmbeddingNet:
    return EmbeddingNet(
        module,
        embedding_dim=options.embedding_dim,
        criterion=options.criterion,
        image_size=options.image_size,
        max_epochs=0,
        batch_size=options.batch_size,
        callbacks__progress_bar=None,
        callbacks__print_log__sink=say,
        device=options.device,
        random_state=0,
    )


def training(data: Bunch, options: argparse.Namespace, n_each: int) -> tuple[np.ndarray, ...]:
    """Return so many images of each class, for a net that only has to learn what there is."""
    labels = data.train.labels
    rows = [i for name in np.unique(labels) for i in np.flatnonzero(labels == name)[:n_each]]
    images = ImageDataset([data.train.paths[i] for i in rows], image_size=options.image_size)
    pixels = [images[i][0].permute(1, 2, 0).numpy() for i in range(len(rows))]
    return np.stack(pixels), labels[rows]


def save(net: EmbeddingNet, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.part")
    state = {name: value.cpu() for name, value in net.module_.state_dict().items()}
    torch.save(state, unfinished)
    os.replace(unfinished, file)


# Figures


def figures_of(init: int, data: Bunch, options: argparse.Namespace) -> Bunch:
    """Train or load one network, and return its recall and the figures of each row."""
    size = options.image_size
    net = network_of(init, data, options)
    judged = data.judged
    found = Bunch(recall=recall_at_k(net.transform(judged.at(size)), judged.labels), rows={})
    images, labels = data.explained.at(size), data.explained.labels
    boxes = data.explained.boxes(size)
    masks = box_masks(boxes, (size, size)).float()
    found.rows["Uniform", "all channels"] = judge(torch.ones_like(masks), masks, boxes)
    for channels, top in CHANNELS.items():
        explainer = EmbeddingCAMExplainer(
            net, top_channels=top, batch_size=options.batch_size, verbose=0
        ).fit(data.proxies.at(size), data.proxies.labels)
        contrast = copy.copy(explainer).set_params(contrast=True)  # of the same proxies
        chen = TripletCAM(random_state=init)
        chen.fit(explainer, data.train.at(size), data.train.labels)
        ways = {
            "Chen et al.": partial(explainer.explain, target="self", method=chen),
            "Single point": partial(explainer.explain, target="self"),
            "Mean proxy": partial(explainer.explain, target=labels),
            "Contrast": partial(contrast.explain, target=labels),
        }
        for name, explain in ways.items():
            # Shares and thresholds are of the map as it is, and not of one without its floor.
            maps = torch.from_numpy(explain(images, normalize=False))
            found.rows[name, channels] = judge(maps, masks, boxes)
        if data.scenes is not None and top is None:
            found.pointing = precision_in_scenes(explainer, contrast, chen, data.scenes, size)
        if top is None:
            found.explainer, found.images = explainer, images[: options.peer_images]
    return found


def judge(maps: Tensor, masks: Tensor, boxes: list[Tensor]) -> Bunch:
    ratios = heatmap_ratio(maps, masks)
    accuracies = {
        threshold: localization_accuracy(box_from_map(maps, threshold), boxes).float().mean().item()
        for threshold in THRESHOLDS
    }
    # A map of zeros has no share anywhere: it does not find the object.
    return Bunch(ratio=ratios.nan_to_num(0).mean().item(), accuracies=accuracies)


def precision_in_scenes(
    explainer: EmbeddingCAMExplainer,
    contrast: EmbeddingCAMExplainer,
    chen: TripletCAM,
    scenes: Images,
    size: int,
) -> dict[str, float]:
    """Return how often the map for a class is highest in one of its boxes, where there are others.

    A single point knows of no class. Chance is the share of the image that the boxes take.
    """
    images, masks = scenes.at(size), box_masks(scenes.boxes(size), (size, size))
    ways = {
        "Chen et al.": partial(explainer.explain, target=scenes.labels, method=chen),
        "Single point": partial(explainer.explain, target="self"),
        "Mean proxy": partial(explainer.explain, target=scenes.labels),
        "Contrast": partial(contrast.explain, target=scenes.labels),
    }
    precision = {"Chance": masks.mean().item()}
    for name, explain in ways.items():
        maps = torch.from_numpy(explain(images, normalize=False))
        precision[name] = pointing_game(maps, masks).float().mean().item()
    return precision


# The peer


class Similarity:
    """The paper's score, in the form that pytorch-grad-cam takes it."""

    def __init__(self, proxy: Tensor):
        self.proxy = proxy

    def __call__(self, embedding: Tensor) -> Tensor:
        return embedding @ self.proxy


def compare_with_peer(found: Bunch, options: argparse.Namespace) -> bool:
    """Print how our time and maps compare with pytorch-grad-cam's; return whether maps agree."""
    explainer, images = found.explainer, found.images
    (inputs,) = explainer.iter_inputs(images)
    network = explainer.model.module_
    layer = explainer.target_layers_[0].of(network)
    label = explainer.classes_[0]
    proxy = torch.from_numpy(explainer.proxies_[0]).to(inputs.device)

    def ours() -> Tensor:
        target = torch.zeros(len(inputs), dtype=torch.long)
        return explainer.explain_inputs(inputs, target)[0]

    def theirs() -> Tensor:
        with pytorch_grad_cam.GradCAM(model=network, target_layers=[layer]) as cam:
            targets = [Similarity(proxy)] * len(inputs)
            return torch.from_numpy(cam(input_tensor=inputs, targets=targets))

    network.eval()
    difference = (ours().cpu() - theirs()).abs().max().item()
    ratios = sorted(
        seconds(theirs, options.device) / seconds(ours, options.device)
        for _ in range(options.rounds)
    )
    print(
        f"pytorch-grad-cam, {len(images)} images towards the proxy of {label}: the largest "
        f"difference of maps is {difference:.1e}; its time / ours is {median(ratios):.2f} "
        f"[{ratios[0]:.2f} .. {ratios[-1]:.2f}]"
    )
    return difference <= TOLERANCE


# Reporting


def spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def table_of(runs: list[Bunch]) -> list[list[str]]:
    """Return the paper's table: a row a method, figures with their deviation."""
    header = ["Method", *(f"Ratio, {name}" for name in CHANNELS)]
    header += [*(f"Accuracy, {name}" for name in CHANNELS)]
    rows = [header]
    for method in ("Uniform", *METHODS):
        cells = [method]
        for value in (lambda row: row.ratio, lambda row: row.accuracies[USUAL]):
            for channels in CHANNELS:
                key = method, channels
                known = key in runs[0].rows
                cells.append(spread([value(run.rows[key]) for run in runs]) if known else "")
        rows.append(cells)
    return rows


def thresholds_of(runs: list[Bunch]) -> list[list[str]]:
    """Return the localisation accuracy over thresholds, all channels."""
    rows = [["Accuracy at threshold", *(f"{threshold:g}" for threshold in THRESHOLDS)]]
    for method in ("Uniform", *METHODS):
        per_run = [run.rows[method, "all channels"].accuracies for run in runs]
        rows.append([method, *(f"{np.mean([of[t] for of in per_run]):.3f}" for t in THRESHOLDS)])
    return rows


def pointing_of(runs: list[Bunch]) -> list[list[str]]:
    if "pointing" not in runs[0]:
        return []
    names = list(runs[0].pointing)
    cells = [spread([run.pointing[name] for run in runs]) for name in names]
    return [["Pointing game in mixed scenes", *names], ["Precision", *cells]]


def title(data: Bunch, runs: list[Bunch], options: argparse.Namespace) -> str:
    return (
        f"{options.arch}, {options.criterion} loss, trained on {len(data.train)} images of "
        f"{len(np.unique(data.train.labels))} classes; {len(data.explained)} images explained at "
        f"{options.image_size} pixels; {len(runs)} initialisations, recall at 1 "
        f"{spread([run.recall for run in runs])}"
    )


def report(data: Bunch, runs: list[Bunch], options: argparse.Namespace) -> None:
    tables = [rows for rows in (table_of(runs), thresholds_of(runs), pointing_of(runs)) if rows]
    print(f"\n{title(data, runs, options)}")
    for rows in tables:
        print()
        for row in rows:
            print(f"{row[0]:30}" + "".join(f"{cell:>24}" for cell in row[1:]), flush=True)
    if options.rst is not None:
        write_rst(title(data, runs, options), tables, options)


def write_rst(name: str, tables: list[list[list[str]]], options: argparse.Namespace) -> None:
    lines = [".. Made by benchmarks/embedding_localization.py", ""]
    for i, rows in enumerate(tables):
        lines += [f".. list-table::{f' {name}' if i == 0 else ''}", "   :header-rows: 1", ""]
        lines += ["   * - " + "\n     - ".join(row) for row in rows]
        lines += [""]
    options.rst.parent.mkdir(parents=True, exist_ok=True)
    unfinished = options.rst.with_name(f"{options.rst.name}.part")
    unfinished.write_text("\n".join(lines), encoding="utf-8")
    os.replace(unfinished, options.rst)


def claims_of(runs: list[Bunch], margin: float, seen: bool) -> list[tuple[bool, bool, str]]:
    """Return what the paper claims: whether it must hold here, whether it does, and its words."""

    def ratios(method: str, channels: str = "all channels") -> np.ndarray:
        return np.array([run.rows[method, channels].ratio for run in runs])

    ours = METHODS[1:3]
    usable = min(
        np.mean([run.rows[method, "all channels"].accuracies[threshold] for run in runs])
        for method in ours
        for threshold in THRESHOLDS
    )
    uniform = ratios("Uniform")
    return [
        *(
            (
                seen,
                bool((ratios(method) > uniform + margin).all()),
                f"{method}: the ratio is {margin} above that of the uniform map, in every run",
            )
            for method in ours
        ),
        *(
            (
                False,
                bool(ratios(method).mean() > ratios(METHODS[0]).mean()),
                f"{method}: with all channels the ratio is above Chen et al.'s",
            )
            for method in ours
        ),
        (
            False,
            bool(ratios("Contrast").mean() > ratios("Mean proxy").mean()),
            "Contrast (not of the paper): the ratio is above that of the mean proxy alone",
        ),
        (
            False,
            bool(max(ratios(method).std() for method in ours) < 0.01),
            "The ratio's deviation over initialisations is below 0.01",
        ),
        (False, bool(usable > 0.6), "The accuracy is above 0.6 at all thresholds"),
    ]


# The program


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--arch", default="resnet18", choices=available_models(), metavar="NAME")
    parser.add_argument("--criterion", default="margin", help="of EmbeddingNet, by name")
    parser.add_argument("--embedding-dim", type=int, default=128)
    parser.add_argument("--inits", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="SEED")
    parser.add_argument("--epochs-small", type=int, default=40, help="at half the image size")
    parser.add_argument("--epochs-full", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--proxy-lr", type=float, default=1e-2, help="of what the loss learns")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--train-share", type=float, default=2 / 3, help="where one has to split")
    parser.add_argument("--margin", type=float, default=0.05)
    parser.add_argument("--peer-images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="of timing against the peer")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--weights", type=Path, metavar="DIR", help="where networks are kept")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="also write reStructuredText")
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def main() -> None:
    options = parse()
    data = read(options.data, options)
    runs: list[Bunch] = []
    for init in options.inits:
        runs.append(figures_of(init, data, options))
        report(data, runs, options)
    print()
    agrees = compare_with_peer(runs[0], options)
    claims = claims_of(runs, options.margin, data.seen)
    for _, holds, text in claims:
        print(f"{text}: {'yes' if holds else 'NO'}")
    if not agrees or not all(holds for must, holds, _ in claims if must):
        raise SystemExit("Not all that should be so is so.")


if __name__ == "__main__":
    main()
