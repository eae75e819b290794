"""How good are seeds from maps, GrabCut's version of them, and a network trained on them?

    python benchmarks/segmentation.py --docs --data DIR --rst segmentation.rst
    python benchmarks/segmentation.py --quick --data DIR

As in section 4.2 of the Grad-CAM paper, a network that knows the labels of whole images makes
seeds, and a segmentation network learns from them. The first is EfficientNet-Lite0, trained on
ImageNet; the second is torchvision's LR-ASPP on the same trunk. One half of the images, with their
labels, is for training, and the other half for the test. GrabCut also refines the seeds (the extra
``grabcut``).

DIR is as for ``gradcam_tables.py``. Its objects have boxes, which stand for masks, so even a
perfect segmentation does not reach 100. Pixels where boxes of several classes overlap are not
counted. The 95 % intervals are by bootstrap over the test images.

Reference: Selvaraju et al., "Grad-CAM", IJCV 2020, section 4.2; Kolesnikov, Lampert, "Seed, Expand
and Constrain", ECCV 2016; Howard et al., "Searching for MobileNetV3", ICCV 2019 (LR-ASPP).
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradcam_tables import claim, read
from paper_tables import Table, interval_of, options_of, parser_of, publish
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation.lraspp import LRASPP

from sklcam import CAMExplainer, CAMSegmenter
from sklcam.explain import ExplanationWarning
from sklcam.metrics import box_masks
from sklcam.metrics.masks import label_overlaps

UNKNOWN = 255
LAYERS = {  # with grids of 28 x 28 and 14 x 14 places, for images of 224 x 224 pixels
    "efficientnet_lite0": ("_blocks.4", "_blocks.10"),
    "resnet18": ("layer2", "layer3"),
}

DOCS = {"images": 160, "epochs": 15}
QUICK = {"images": 16, "epochs": 2}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# Truth


def size_of(path: str) -> tuple[int, int]:
    with Image.open(path) as opened:
        width, height = ImageOps.exif_transpose(opened).size
    return height, width


def mask_of(boxes: Mapping[Any, np.ndarray], classes: list[Any], size: tuple[int, int]) -> Tensor:
    """Return the label map made of the boxes of each class."""
    inside = [
        box_masks([torch.as_tensor(boxes.get(label, np.empty((0, 4))))], size)[0] >= 0.5
        for label in classes
    ]
    stacked = torch.stack(inside)
    labels = stacked.to(torch.uint8).argmax(dim=0) + 1
    n_boxes = stacked.sum(dim=0)
    return torch.where(n_boxes == 0, 0, torch.where(n_boxes > 1, UNKNOWN, labels))


# The network that learns from seeds


class Trunk(nn.Module):
    """The layers of a network up to a given one, with the outputs of two of them."""

    def __init__(self, network: nn.Module, low: str, high: str):
        super().__init__()
        self.network, self.found = network, {}
        for place, name in (("low", low), ("high", high)):
            layer = network.get_submodule(name)
            layer.register_forward_hook(partial(self._keep, place))

    def _keep(self, place: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self.found[place] = output

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.network(images)
        found, self.found = self.found, {}
        return found


def segmentation_network(network: nn.Module, layers: Sequence[str], n_labels: int) -> LRASPP:
    trunk = Trunk(copy.deepcopy(network), *layers).eval()
    with torch.no_grad():
        found = trunk(torch.zeros(1, 3, 64, 64, device=next(network.parameters()).device))
    channels = [found[place].shape[1] for place in ("low", "high")]
    torch.manual_seed(0)
    return LRASPP(trunk, *channels, n_labels).to(next(network.parameters()).device)


def trained(network: LRASPP, images: Tensor, labels: Tensor, options: argparse.Namespace) -> LRASPP:
    """Train on label maps without their unknown pixels, and with fixed batch statistics."""
    optimizer = torch.optim.AdamW(
        [
            {"params": network.backbone.parameters(), "lr": 1e-4},
            {"params": network.classifier.parameters(), "lr": 2e-3},
        ],
        weight_decay=1e-4,
    )
    generator = torch.Generator().manual_seed(0)
    n_steps = options.epochs * -(-len(images) // 16)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, n_steps)
    network.train()
    network.backbone.eval()
    for _ in range(options.epochs):
        for rows in torch.randperm(len(images), generator=generator).split(16):
            some, seeds = images[rows], labels[rows]
            if torch.rand((), generator=generator) < 0.5:
                some, seeds = some.flip(3), seeds.flip(2)
            logits = network(some)["out"]
            loss = functional.cross_entropy(logits, seeds, ignore_index=UNKNOWN)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def shrunk(label_maps: Sequence[np.ndarray], size: Sequence[int]) -> Tensor:
    """Return label maps at the network's input size, without interpolating between labels."""
    sizes = (size[1], size[0])
    small = [Image.fromarray(labels).resize(sizes, Image.NEAREST) for labels in label_maps]
    return torch.from_numpy(np.stack([np.asarray(labels) for labels in small])).long()


@torch.no_grad()
def segmented(
    network: LRASPP, images: Tensor, sizes: Sequence[tuple[int, int]]
) -> list[np.ndarray]:
    """Return label maps at the images' own sizes."""
    found = []
    for some, own in zip(images.split(16), batched(sizes, 16), strict=True):
        for logits, size in zip(network(some)["out"], own, strict=True):
            whole = functional.interpolate(logits[None], size, mode="bilinear")
            found.append(whole[0].argmax(dim=0).cpu().numpy().astype(np.uint8))
    return found


def batched(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


# Results


def counts_of(found: Sequence[np.ndarray], masks: Sequence[Tensor], n_labels: int) -> np.ndarray:
    """Return the intersections and unions of label maps and masks of each label, by image."""
    pairs = [
        torch.stack(label_overlaps(torch.from_numpy(labels), mask, n_labels))
        for labels, mask in zip(found, masks, strict=True)
    ]
    return torch.stack(pairs).numpy()


def mean_iou(counts: np.ndarray) -> float:
    shared, either = counts.sum(axis=0)
    known = either > 0
    return float(100 * np.mean(shared[known] / either[known]))


def known_share(found: Sequence[np.ndarray]) -> float:
    return 100 * float(np.mean([(labels != UNKNOWN).mean() for labels in found]))


def table_of(
    ways: Mapping[str, tuple[Sequence[np.ndarray], bool]],
    masks: Sequence[Tensor],
    n_labels: int,
    title: str,
) -> Table:
    table = Table(title, ["label maps", "labels given", "mean IoU", "pixels with a label"])
    counts = {name: counts_of(found, masks, n_labels) for name, (found, _) in ways.items()}
    for name, (found, is_given) in ways.items():
        value, low, high = interval_of(mean_iou, counts[name])
        interval = f"{value:.1f} ({low:.1f} to {high:.1f})"
        table.add(name, "yes" if is_given else "no", interval, f"{known_share(found):.0f} %")
    for text, high_name, low_name in (
        ("GrabCut improves seeds", "seeds, GrabCut", "seeds"),
        ("A network trained on seeds is better than the seeds", "network, of seeds", "seeds"),
        (
            "A network trained on GrabCut's seeds is better than GrabCut's seeds",
            "network, of GrabCut",
            "seeds, GrabCut",
        ),
    ):
        table.claims.append(gain(text, counts[high_name], counts[low_name]))
    return table


def gain(text: str, high: np.ndarray, low: np.ndarray) -> Any:
    """Return the claim that one is better than the other on the same images."""
    made = claim(text, np.zeros(len(high)), np.zeros(len(high)))
    made.value, made.low, made.high = interval_of(lambda a, b: mean_iou(a) - mean_iou(b), high, low)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, QUICK, None, DOCS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--year", default="2007", help="the year of VOC")
    parser.add_argument("--arch", default="efficientnet_lite0", choices=LAYERS)
    parser.add_argument("--weights", default="DEFAULT", help='a file, or "none" for random weights')
    parser.add_argument("--images", type=int, help="images of one class, and of several, at most")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch-size", type=int, default=16)
    options = options_of(parser, arguments)
    warnings.simplefilter("ignore", ExplanationWarning)  # about blank maps, which are measured
    explainer, data = read(options)
    n_images = len(data.every.X)
    order = np.random.default_rng(0).permutation(n_images).tolist()
    parts = order[: n_images // 2], order[n_images // 2 :]
    publish([measured(explainer, data.every, parts, options)], options, "Selvaraju et al.")


def measured(
    explainer: CAMExplainer, data: Any, parts: Sequence[list[int]], options: argparse.Namespace
) -> Table:
    """Make seeds for both parts, train on the first, and judge all on the second."""
    files, labels = ([[of[i] for i in rows] for rows in parts] for of in (data.X, data.boxes))
    sets = [[{*boxes} for boxes in part] for part in labels]
    every = data.X, [{*boxes} for boxes in data.boxes]  # one half may lack a class
    segmenters = {
        name: CAMSegmenter(explainer, refine=refine).fit(*every)
        for name, refine in {"seeds": None, "seeds, GrabCut": "grabcut"}.items()
    }
    classes = segmenters["seeds"].classes_.tolist()
    n_labels = len(classes) + 1
    sizes = [size_of(path) for path in files[1]]
    masks = [mask_of(boxes, classes, size) for boxes, size in zip(labels[1], sizes, strict=True)]
    images = [torch.cat([*explainer.iter_inputs(part)]) for part in files]
    ways: dict[str, tuple[Sequence[np.ndarray], bool]] = {}
    networks = {}
    for name, segmenter in segmenters.items():
        say(f"{name}, {time.strftime('%H:%M:%S')}")
        ways[name] = segmenter.predict(files[1], sets[1]), True
        seeds = shrunk(segmenter.predict(files[0], sets[0]), images[0].shape[2:])
        say(f"a network of {name}, {time.strftime('%H:%M:%S')}")
        network = segmentation_network(explainer.model_, LAYERS[options.arch], n_labels)
        networks[name] = trained(network, images[0], seeds.to(images[0].device), options)
    ways["seeds, of predicted classes"] = segmenters["seeds"].predict(files[1]), False
    for name, network in networks.items():
        short = "network, of GrabCut" if "GrabCut" in name else "network, of seeds"
        ways[short] = segmented(network, images[1], sizes), False
    title = (
        f"Mean intersection over union with boxes, in per cent, {len(files[1])} images of "
        f"{len(classes)} classes; {len(files[0])} others were learned from"
    )
    return table_of(ways, masks, n_labels, title)


if __name__ == "__main__":
    main()
