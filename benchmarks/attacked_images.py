"""Do maps of a class stay on its object when an attack takes the class away from the network?

    python benchmarks/attacked_images.py --docs --data DIR --rst attacked.rst
    python benchmarks/attacked_images.py --quick --data DIR

As in section 6.2 of the Grad-CAM paper, images are changed, by less than the eye can see, until the
network is sure of a class that is not there. What happens to the map of the class that is there?
Images are attacked by projected gradient descent, in a few lines; images made by torchattacks or
foolbox can be given to ``explain`` in the same way.

DIR is as for ``gradcam_tables.py``. The similarity of an image's maps before and after is compared
with that of its map and the map of the previous image of its class. The 95 % intervals are by
bootstrap over the images.

Reference: Selvaraju et al., "Grad-CAM", IJCV 2020, section 6.2; Madry et al., "Towards deep
learning models resistant to adversarial attacks", ICLR 2018.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from gradcam_tables import cell, claim, read
from paper_tables import Table, options_of, parser_of, publish
from segmentation import size_of
from torch import Tensor
from torch.nn import functional

from sklcam import CAMExplainer
from sklcam.explain import ExplanationWarning
from sklcam.metrics import (
    box_masks,
    heatmap_ratio,
    pointing_game,
    rank_correlation,
    structural_similarity,
)

DOCS = {"images": 48, "steps": 20}
QUICK = {"images": 6, "steps": 5}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def attacked(
    explainer: CAMExplainer, images: Tensor, wrong: Tensor, options: argparse.Namespace
) -> Tensor:
    """Return images, changed by at most epsilon, that the network takes for a wrong class."""
    std = torch.as_tensor(explainer.preprocessing_.std, dtype=images.dtype, device=images.device)
    epsilon = (options.epsilon / 255 / std).reshape(1, -1, 1, 1)
    low, high = images.amin(dim=(0, 2, 3), keepdim=True), images.amax(dim=(0, 2, 3), keepdim=True)
    changed = images.clone()
    for _ in range(options.steps):
        changed.requires_grad_(True)
        loss = functional.cross_entropy(explainer.model_(changed), wrong)
        (gradient,) = torch.autograd.grad(loss, changed)
        step = changed.detach() - epsilon / 4 * gradient.sign()
        step = torch.min(torch.max(step, images - epsilon), images + epsilon)
        changed = torch.min(torch.max(step, low), high)
    return changed


def measured(explainer: CAMExplainer, data, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return the numbers of each image, before and after the attack."""
    known = explainer.classes_.tolist()
    classes = torch.tensor([known.index(label) for label in data.y.tolist()])
    present = classes.unique()
    opened = explainer.open(data.X)
    found: dict[str, list[Tensor]] = {}
    last: dict[int, Tensor] = {}
    for batch in opened.batches():
        say(f"{batch.stop} of {len(opened)} images")
        images, rows = batch.inputs.images, range(batch.start, batch.stop)
        true = classes[batch.start : batch.stop].to(images.device)
        with torch.no_grad():
            likely = explainer.output_of(images)
        likely[:, present.to(images.device)] = -torch.inf
        # The least likely class would be the farthest away; the paper takes any class that is not
        # there.
        wrong = likely.argsort(dim=1)[:, likely.shape[1] // 2]
        masks = box_masks([scaled(data, row, images.shape[2:]) for row in rows], images.shape[2:])
        masks = masks.to(images.device)
        found.setdefault("area", []).append(100 * masks.mean(dim=(1, 2)).cpu())
        maps = []
        for when, given in (
            ("before", images),
            ("after", attacked(explainer, images, wrong, options)),
        ):
            (raw, shown), output, _ = explainer.explain_batch(
                given, true, methods=["gradcam", "gradcam"], normalize=[False, True]
            )
            of_class, of_wrong = (
                100 * explainer.probabilities(output).gather(1, each[:, None])[:, 0]
                for each in (true, wrong)
            )
            values = {
                f"class {when}": of_class,
                f"wrong class {when}": of_wrong,
                f"share in the box {when}": 100 * heatmap_ratio(raw, masks),
                f"highest pixel in the box {when}": 100 * pointing_game(raw, masks),
            }
            for name, each in values.items():
                found.setdefault(name, []).append(each.detach().float().cpu())
            maps.append(shown.cpu())
        others = []
        for i, label in enumerate(true.tolist()):
            others.append(last.get(label))
            last[label] = maps[0][i]
        for name, function in (("SSIM", structural_similarity), ("rank", rank_correlation)):
            found.setdefault(name, []).append(function(maps[0], maps[1]))
            pairs = [
                function(own[None], other[None])[0]
                if other is not None
                else torch.tensor(torch.nan)
                for own, other in zip(maps[0], others, strict=True)
            ]
            found.setdefault(f"{name} of others", []).append(torch.stack(pairs))
    return {name: torch.cat(parts).double().numpy() for name, parts in found.items()}


def scaled(data, row: int, size: Sequence[int]) -> Tensor:
    """Return the boxes of an image as they lie in the network's input."""
    height, width = size_of(data.X[row])
    ratios = np.array([size[1] / width, size[0] / height] * 2)
    return torch.from_numpy(data.boxes[row] * ratios).float()


def table_of(found: dict[str, np.ndarray], options: argparse.Namespace) -> Table:
    n_images = len(found["SSIM"])
    table = Table(
        f"Maps of a class before and after an attack, {options.arch}, {n_images} images, "
        f"{options.steps} steps, each pixel changed by at most {options.epsilon:g} of 255",
        ["", "before", "after"],
    )
    for name, shown in (
        ("class", "probability of the class, per cent"),
        ("wrong class", "probability of a class that is not there, per cent"),
        ("share in the box", "share of the class's map in its boxes, per cent"),
        ("highest pixel in the box", "highest pixel of the map in a box, per cent"),
    ):
        cells = [cell(known(found[f"{name} {when}"])) for when in ("before", "after")]
        table.add(shown, *cells)
    area = cell(found["area"])
    table.add("share of the image that its boxes cover, per cent", area, area)
    for name, shown in (("SSIM", "SSIM"), ("rank", "rank correlation")):
        table.add(f"{shown} of the maps before and after", "", cell(known(found[name]), ".2f"))
        others = cell(known(found[f"{name} of others"]), ".2f")
        table.add(f"{shown} of the maps of two images of a class", others, "")
    changes = {
        name: found[f"{name} after"] - found[f"{name} before"]
        for name in ("share in the box", "highest pixel in the box")
    }
    for name, change in changes.items():
        lost = known(-change)
        table.claims.append(claim(f"Under attack, the {name} falls", lost, 0 * lost))
    off = found["share in the box after"] - found["area"]
    text = "Under attack, more of the class's map lies in its boxes than of a uniform map"
    table.claims.append(claim(text, known(off), 0 * known(off)))
    for name in ("SSIM", "rank"):
        both = ~np.isnan(found[name] + found[f"{name} of others"])
        pair = (100 * found[key][both] for key in (name, f"{name} of others"))
        text = f"{name}: the map under attack is more like the one before than like another image's"
        table.claims.append(claim(text, *pair, unit="hundredths"))
    return table


def known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, QUICK, None, DOCS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--year", default="2007", help="the year of VOC")
    parser.add_argument("--arch", default="efficientnet_lite0")
    parser.add_argument("--weights", default="DEFAULT", help='a file, or "none" for random weights')
    parser.add_argument("--images", type=int, help="images of one class, at most")
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--epsilon", type=float, default=8.0, help="the most that a pixel changes, of 255"
    )
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch-size", type=int, default=8)
    options = options_of(parser, arguments)
    warnings.simplefilter("ignore", ExplanationWarning)  # blank maps are measured, too
    explainer, data = read(options)
    found = measured(explainer, data.single, options)
    publish([table_of(found, options)], options, "Selvaraju et al.")


if __name__ == "__main__":
    main()
