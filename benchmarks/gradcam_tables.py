"""Tables 1 and 3 of the Grad-CAM paper, its pointing game and its correlation with occlusion.

    python benchmarks/gradcam_tables.py --docs --data DIR --rst tables.rst
    python benchmarks/gradcam_tables.py --full --data IMAGENET --device cuda
    python benchmarks/gradcam_tables.py --quick --data DIR --tables localization

localization, table 1: classification and localisation errors, top-1 and top-5. The box of a class
    surrounds the largest part of its map above 15 % of the maximum. For backpropagation, GrabCut
    makes the box, as Simonyan et al. do (the extra ``grabcut``).
ablations, table 3: Grad-CAM without the ReLU, and with other gradients and pooling, at the last
    layer and at earlier ones. Classes are predicted from one crop and from ten; maps are of one.
pointing: the pointing game with the option to reject, for the five likeliest classes. Each method
    gets its threshold from one half of the images, and plays on the other half.
occlusion: the rank correlation of maps with occlusion maps.

DIR holds ``*boxes.csv``, at most two folders deep, with the columns
``path, label, x1, y1, x2, y2``, or ``<class>_boxes.csv`` without labels. Labels are names of
ImageNet's classes, or some that are translated here. Or DIR is ImageNet, whose ``val`` is used, or
PASCAL VOC, whose ``--year`` is used, for a network of its 20 classes (``--weights FILE``).
``--weights none`` starts from random weights.

The network sees the whole image, squeezed into its square, as in the authors' code. The 95 %
intervals are by bootstrap over the images; differences are on the same images.

Reference: Selvaraju et al., "Grad-CAM", IJCV 2020, sections 4 and 5.3, appendices B and D. Simonyan
et al., "Deep inside convolutional networks", 2013, section 3.2.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paper_tables import Claim, Table, interval_of, options_of, parser_of, publish
from PIL import Image, ImageOps
from sklearn.utils import Bunch
from torch import Tensor
from torchvision.transforms import functional as crops

from sklcam import CAMExplainer
from sklcam.cam import (
    CAM,
    ExcitationBackprop,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    Method,
    Occlusion,
    Saliency,
)
from sklcam.datasets import load_boxes_csv, load_imagenet, load_voc
from sklcam.explain import ExplanationWarning
from sklcam.metrics import (
    box_from_map,
    evaluate,
    localization_accuracy,
    rank_correlation,
    rejection_threshold,
)
from sklcam.networks import build_model, load_weights
from sklcam.segmentation import grab_cut

# Labels of data sets that have another name in ImageNet.
ALIASES = {"apple": "Granny Smith", "airplanes": "airliner", "airplane": "airliner"}
LAYERS = {  # besides the last: the one before the last convolution, and earlier ones
    "efficientnet_lite": ("_blocks.15", "_blocks.10", "_blocks.4"),
    "vgg16": ("features.22", "features.15", "features.8"),
    "resnet": ("layer3", "layer2"),
}
OF_PAPER = {  # VGG-16, ILSVRC-15: errors of localisation, top-1 and top-5
    "Backprop, GrabCut": ("61.12", "51.46"),
    "c-MWP": ("70.92", "63.04"),
    "Grad-CAM": ("56.51", "46.41"),
    "CAM": ("57.20", "45.14"),
}
ABLATIONS: dict[str, tuple[str, Method]] = {  # the paper's figure, and how
    "Grad-CAM": ("59.65", GradCAM()),
    "without ReLU": ("74.98", GradCAM(relu=False)),
    "absolute gradients": ("58.19", GradCAM(gradient="absolute")),
    "max-pooled gradients": ("59.96", GradCAM(pooling="max")),
    "deconv ReLU": ("83.95", GradCAM(gradient="deconv")),
    "guided ReLU": ("59.14", GradCAM(gradient="guided")),
}
CORRELATIONS: dict[str, tuple[str, Method]] = {
    "Grad-CAM": ("0.254", GradCAM()),
    "Guided Grad-CAM": ("0.261", GuidedGradCAM()),
    "Guided backprop": ("0.168", GuidedBackprop()),
    "c-MWP": ("0.220", ExcitationBackprop()),
    "CAM": ("0.208", CAM()),
}
BOX, KEPT, SEEN = 0.15, 0.95, 0.30  # of the maximum; quantiles for GrabCut's seeds

DOCS = {"images": 160, "occlusion_images": 24}
QUICK = {"images": 12, "occlusion_images": 3}
FULL = {"images": None, "occlusion_images": 2510}

say = partial(print, file=sys.stderr, flush=True)


# Images


def listed(folder: Path) -> list[tuple[str, str, np.ndarray]]:
    """Return the path, label and boxes of each image and class in a folder's CSV files."""
    found: list[tuple[str, str, np.ndarray]] = []
    for file in sorted({*folder.glob("*boxes.csv"), *folder.glob("*/*boxes.csv")}):
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        if rows and "label" in rows[0]:
            table = load_boxes_csv(file)
            found += zip(table.data, table.target.tolist(), table.boxes, strict=True)
            continue
        label, boxes = file.name.removesuffix("_boxes.csv"), {}
        for row in rows:
            corners = [float(row[name]) for name in ("x1", "y1", "x2", "y2")]
            boxes.setdefault(str(file.parent / row["path"]), []).append(corners)
        found += [(path, label, np.array(corners)) for path, corners in boxes.items()]
    return found


def entries_of(options: argparse.Namespace) -> list[tuple[str, str, np.ndarray]]:
    folder = options.data
    if (folder / "val").is_dir() or (folder / "ILSVRC").is_dir():
        loaded = load_imagenet(folder)
        if len(loaded.target_names) != 1000:
            raise SystemExit(f"{folder} has {len(loaded.target_names)} of ImageNet's 1000 classes.")
        if loaded.boxes is None:
            raise SystemExit(f"{folder} has no boxes, as Annotations/CLS-LOC/val is missing.")
    elif any(folder.glob("**/ImageSets")):
        loaded = load_voc(folder, year=options.year)
    else:
        found = listed(folder)
        if not found:
            raise SystemExit(f"{folder} is neither ImageNet nor VOC, and has no *boxes.csv.")
        return found
    return list(zip(loaded.data, loaded.target.tolist(), loaded.boxes, strict=True))


def read(options: argparse.Namespace) -> tuple[CAMExplainer, Bunch]:
    """Return the explainer, and images with the boxes of each of their classes."""
    entries = entries_of(options)
    labels = sorted({label for _, label, _ in entries})
    explainer = explainer_of(labels, options)
    known = explainer.classes_ if explainer.class_names_ is None else explainer.class_names_
    if len(labels) == 1000 and explainer.class_names_ is not None:
        known = labels  # WordNet ids, in the order of the classes
    places = {name: i for i, name in reversed(list(enumerate(np.asarray(known).tolist())))}
    unknown = {label for label in labels if ALIASES.get(label, label) not in places}
    unknown -= {label for label in labels if label in places}
    if unknown:
        raise SystemExit(f"The network does not know these labels: {', '.join(sorted(unknown))}.")
    of_image: dict[str, dict[Any, np.ndarray]] = {}
    for path, label, boxes in entries:
        place = places.get(label, places.get(ALIASES.get(label, label)))
        of_image.setdefault(path, {})[explainer.classes_[place].item()] = boxes
    alone = [path for path, boxes in of_image.items() if len(boxes) == 1]
    alone = drawn_evenly(alone, [next(iter(of_image[path])) for path in alone], options.images)
    mixed = [path for path, boxes in of_image.items() if len(boxes) > 1]
    mixed = mixed[: options.images]
    return explainer, Bunch(
        single=Bunch(
            X=alone,
            y=np.array([next(iter(of_image[path])) for path in alone]),
            boxes=[next(iter(of_image[path].values())) for path in alone],
        ),
        every=Bunch(X=alone + mixed, boxes=[of_image[path] for path in alone + mixed]),
        labels=labels,
    )


def drawn_evenly(paths: list[str], labels: list[Any], n_images: int | None) -> list[str]:
    """Draw evenly from the classes, as long as these have enough images."""
    generator = np.random.default_rng(0)
    order, turns = generator.permutation(len(paths)), {}
    ranked = []
    for i in order.tolist():
        turns[labels[i]] = turns.get(labels[i], -1) + 1
        ranked.append((turns[labels[i]], i))
    return [paths[i] for _, i in sorted(ranked)[:n_images]]


def explainer_of(
    labels: list[str], options: argparse.Namespace, layer: str = "auto"
) -> CAMExplainer:
    shared = {"target_layer": layer, "resize": "stretch", "verbose": 0}
    shared |= {"batch_size": options.batch_size, "image_size": options.image_size}
    if options.weights == "DEFAULT":
        explainer = CAMExplainer(options.arch, weights="DEFAULT", **shared).fit()
        explainer.model_.to(options.device)
        return explainer
    torch.manual_seed(0)
    network = build_model(options.arch, n_classes=len(labels))
    if options.weights != "none":
        load_weights(network, options.weights)
    return CAMExplainer(network.to(options.device).eval(), classes=labels, **shared).fit()


# Boxes, and whether they fit


class GrabCut(Saliency):
    """Backpropagation, whose map is cut out of the image, as Simonyan et al. do."""


def cut_out(image: Tensor, saliency: Tensor) -> Tensor:
    """Return GrabCut's object as a map, seeded where saliency is high and low."""
    numbers = saliency.cpu().numpy()
    high, low = np.quantile(numbers, (KEPT, SEEN))
    seeds = np.full(numbers.shape, 255)
    seeds[(numbers >= high) & (numbers > low)] = 1
    seeds[numbers <= low] = 0
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return torch.from_numpy(grab_cut(pixels, seeds, keep_objects=True) == 1).to(saliency)


def hits_of(
    explainer: CAMExplainer, data: Bunch, methods: Mapping[str, Method]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return whether the box of each image's class fits, and how many classes score higher."""
    opened = explainer.open(data.X, originals=True)
    question = explainer.as_target(data.y, len(opened))
    # At a share of its maximum, a map without the ReLU has the same box as a map with it. So it is
    # scaled to [0, 1] first.
    scaled = [not getattr(method, "relu", True) for method in methods.values()]
    hits: dict[str, list[float]] = {name: [] for name in methods}
    ranks: list[int] = []
    for explained in explainer.iter_explained(
        opened, question, methods=list(methods.values()), normalize=scaled
    ):
        batch = explained.batch
        scores = explained.output.gather(1, explained.target.indices)
        ranks += (explained.output > scores).sum(dim=1).tolist()
        for i, size in enumerate(batch.sizes):
            truth = [torch.from_numpy(data.boxes[batch.start + i])]
            for (name, method), maps in zip(methods.items(), explained.maps, strict=True):
                map_ = explainer.to_frame(maps[i], size).float().cpu()
                if isinstance(method, GrabCut):
                    map_ = cut_out(batch.originals[i], map_)
                box = box_from_map(map_[None], BOX)
                hits[name].append(localization_accuracy(box, truth).item())
    return {name: np.array(found) for name, found in hits.items()}, np.array(ranks)


def ten_crop_ranks(explainer: CAMExplainer, data: Bunch) -> np.ndarray:
    """Return how many classes are likelier than the true one, averaged over ten crops."""
    height, width = explainer.open(data.X[:1]).image_size
    ranks = []
    for path, label in zip(data.X, data.y, strict=True):
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        image = crops.resize(image, round(min(height, width) * 256 / 224))
        ten = np.stack([np.asarray(crop) for crop in crops.ten_crop(image, [height, width])])
        mean = explainer.predict_proba(ten).mean(axis=0)
        ranks.append((mean > mean[np.flatnonzero(explainer.classes_ == label)[0]]).sum())
    return np.array(ranks)


def errors(hits: np.ndarray, ranks: np.ndarray, k: int) -> np.ndarray:
    """Return top-k localisation errors, in per cent; an image needs one right class and box."""
    return 100 * (1 - hits * (ranks < k))


def cell(values: np.ndarray, form: str = ".1f") -> str:
    value, low, high = interval_of(np.mean, values)
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def claim(
    text: str, high: np.ndarray, low: np.ndarray, paper: str = "", unit: str = "points"
) -> Claim:
    """Return the claim that one column is above another, with the paper's figures for both."""
    text = f"{text} (paper: {paper})" if paper else text
    interval = interval_of(lambda a, b: a.mean() - b.mean(), high, low)
    return Claim(text, *interval, unit, n_images=len(high))


# The tables


def localization(explainer: CAMExplainer, data: Bunch, options: argparse.Namespace) -> Table:
    single = data.single
    table = Table(
        f"Localisation errors in per cent (table 1), {options.arch}, {len(single.X)} images",
        ["method", "top-1", "top-5", "paper, VGG-16, top-1", "top-5"],
    )
    ways: dict[str, Method] = {"Backprop, GrabCut": GrabCut()}
    hits, ranks = hits_of(explainer, single, ways)
    found = {name: [errors(hits[name], ranks, k) for k in (1, 5)] for name in ways}
    others = {"c-MWP": ExcitationBackprop(), "Grad-CAM": GradCAM(), "CAM": CAM()}
    for name, method in others.items():
        metrics = ["top1_localization_error", "top5_localization_error"]
        try:
            result = evaluate(
                explainer, single.X, single.y, metrics=metrics, method=method, boxes=single.boxes,
                progress=False,
            )  # fmt: skip
        except ValueError as error:
            if name != "CAM":
                raise
            say(f"CAM: {error}")  # the head is of another kind
            continue
        found[name] = [100 * result[metric] for metric in metrics]
    wrong = [100.0 * (ranks >= k) for k in (1, 5)]
    table.add("(classification)", *map(cell, wrong), "30.38", "10.89")
    for name, values in found.items():
        table.add(name, *map(cell, values), *OF_PAPER[name])
    for i, k in enumerate(("top-1", "top-5")):
        for other in ("Backprop, GrabCut", "c-MWP"):
            text = f"Grad-CAM's {k} error is below that of {other}"
            paper = f"{OF_PAPER['Grad-CAM'][i]} and {OF_PAPER[other][i]}"
            table.claims.append(claim(text, found[other][i], found["Grad-CAM"][i], paper))
    if "CAM" in found:
        n_apart = int((found["CAM"][0] != found["Grad-CAM"][0]).sum())
        table.add("(images where CAM is not Grad-CAM)", str(n_apart), "", "0 (GoogLeNet)", "0")
    return table


def ablations(explainer: CAMExplainer, data: Bunch, options: argparse.Namespace) -> Table:
    single, layers = data.single, options.layers
    table = Table(
        f"Ablations (table 3): top-1 localisation errors in per cent, {options.arch}, "
        f"{len(single.X)} images",
        ["at the layer", "method", "one crop", "ten crops", "paper, ten crops"],
    )
    methods = {name: method for name, (_, method) in ABLATIONS.items()}
    ten = ten_crop_ranks(explainer, single)
    first: dict[str, np.ndarray] = {}
    for place, layer in enumerate(("auto", *layers)):
        say(f"ablations at {layer}, {time.strftime('%H:%M:%S')}")
        at = explainer if layer == "auto" else explainer_of(data.labels, options, layer)
        name = at.target_layers_[0].name
        # All of them at the last two layers, as no ReLU may follow the last.
        hits, ranks = hits_of(at, single, methods if place < 2 else {"Grad-CAM": GradCAM()})
        found = {way: errors(of, ranks, 1) for way, of in hits.items()}
        for way, values in found.items():
            ten_cell = cell(errors(hits[way], ten, 1))
            paper = ABLATIONS[way][0] if place == 0 else ""
            table.add(name, way, cell(values), ten_cell, paper)
        if place < 2:
            table.claims += claims_of_ablations(name, {w: errors(hits[w], ten, 1) for w in hits})
        if not first:
            first = found
        else:
            text = f"Grad-CAM is worse at the earlier layer {name} than at the last"
            table.claims.append(claim(text, found["Grad-CAM"], first["Grad-CAM"]))
    return table


def claims_of_ablations(layer: str, found: Mapping[str, np.ndarray]) -> list[Claim]:
    """Return the paper's claims about each ablation: it is worse, or better."""
    claims = []
    for way, values in found.items():
        if way == "Grad-CAM":
            continue
        is_worse = float(ABLATIONS[way][0]) > float(ABLATIONS["Grad-CAM"][0])
        pair = (values, found["Grad-CAM"]) if is_worse else (found["Grad-CAM"], values)
        text = f"{layer}, {way}: the error {'rises' if is_worse else 'falls'}"
        paper = f"{ABLATIONS['Grad-CAM'][0]} to {ABLATIONS[way][0]}"
        claims.append(claim(text, *pair, paper))
    return claims


def pointing(explainer: CAMExplainer, data: Bunch, options: argparse.Namespace) -> Table:
    every = data.every
    halves = [
        Bunch(X=every.X[start::2], boxes=every.boxes[start::2]) for start in (0, 1)
    ]  # fmt: skip
    validation, test = halves
    table = Table(
        f"The pointing game with rejection: maps that win, in per cent, {options.arch}, "
        f"{len(test.X)} images, thresholds from {len(validation.X)} others",
        ["method", "wins", "threshold", "paper, VGG-16"],
    )
    found = {}
    ways = {"Grad-CAM": (GradCAM(), "70.58"), "c-MWP": (ExcitationBackprop(), "60.30")}
    for name, (method, paper) in ways.items():
        shared = {"method": method, "progress": False}
        threshold = rejection_threshold(
            explainer, validation.X, boxes=validation.boxes, method=method
        )
        params = {"pointing_game_reject": {"threshold": threshold}}
        result = evaluate(
            explainer, test.X, metrics="pointing_game_reject", boxes=test.boxes,
            metric_params=params, **shared,
        )  # fmt: skip
        found[name] = 100 * result["pointing_game_reject"]
        table.add(name, cell(found[name]), f"{threshold:.3g}", paper)
    params = {"pointing_game_reject": {"threshold": 1e9}}
    result = evaluate(
        explainer, test.X, metrics="pointing_game_reject", boxes=test.boxes,
        metric_params=params, progress=False,
    )  # fmt: skip
    rejected = 100 * result["pointing_game_reject"]
    table.add("(all rejected)", cell(rejected), "", "")
    table.claims += [
        claim(
            "Grad-CAM wins more often than c-MWP",
            found["Grad-CAM"],
            found["c-MWP"],
            "70.58 and 60.30",
        ),
        claim("Grad-CAM wins more often than rejecting all", found["Grad-CAM"], rejected),
    ]
    return table


def occlusion(explainer: CAMExplainer, data: Bunch, options: argparse.Namespace) -> Table:
    n_images = min(options.occlusion_images, len(data.single.X))
    X, y = data.single.X[:n_images], data.single.y[:n_images]
    table = Table(
        f"Rank correlation with occlusion maps, {options.arch}, {n_images} images",
        ["method", "correlation", "paper, VGG-16"],
    )
    covering = Occlusion(relu=False)
    say(f"occlusion of {n_images} images, {time.strftime('%H:%M:%S')}")
    references = torch.from_numpy(explainer.explain(X, y, method=covering, normalize=False))
    _, stride = covering.patch_and_stride(*references.shape[1:])
    found = {}
    for name, (paper, method) in CORRELATIONS.items():
        try:
            maps = torch.from_numpy(explainer.explain(X, y, method=method, normalize=False))
        except ValueError as error:
            if name != "CAM":
                raise
            say(f"CAM: {error}")
            continue
        found[name] = rank_correlation(maps, references, cell=stride).numpy()
        table.add(name, cell(found[name], ".3f"), paper)
    for better, worse in (
        ("Grad-CAM", "Guided backprop"),
        ("Guided Grad-CAM", "Guided backprop"),
        ("Grad-CAM", "c-MWP"),
        ("Guided Grad-CAM", "Grad-CAM"),
    ):
        text = f"{better} correlates more with occlusion than {worse}"
        scaled = (100 * found[better], 100 * found[worse])
        paper = f"{CORRELATIONS[better][0]} and {CORRELATIONS[worse][0]}"
        table.claims.append(claim(text, *scaled, paper, "hundredths"))
    return table


TABLES = {
    "localization": localization,
    "ablations": ablations,
    "pointing": pointing,
    "occlusion": occlusion,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, QUICK, FULL, DOCS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--year", default="2007", help="the year of VOC")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--arch", default="efficientnet_lite0")
    parser.add_argument("--weights", default="DEFAULT", help='a file, or "none" for random weights')
    parser.add_argument(
        "--layers", nargs="*", metavar="NAME", help="layers besides the last, for table 3"
    )
    parser.add_argument("--images", type=int, help="images of one class, and of several, at most")
    parser.add_argument("--occlusion-images", type=int)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch-size", type=int, default=16)
    options = options_of(parser, arguments)
    if options.layers is None:
        known = [of for prefix, of in LAYERS.items() if options.arch.startswith(prefix)]
        options.layers = known[0] if known else ()
    # Blank maps of classes that are not predicted, and gradients that a rule for ReLUs does not
    # change, are measured as they are.
    warnings.simplefilter("ignore", ExplanationWarning)
    warnings.filterwarnings("ignore", message=".*changes the backward pass through ReLUs")
    explainer, data = read(options)
    tables = []
    for name in options.tables:
        say(f"{name}, {time.strftime('%H:%M:%S')}")
        tables.append(TABLES[name](explainer, data, options))
    publish(tables, options, "Selvaraju et al.")


if __name__ == "__main__":
    main()
