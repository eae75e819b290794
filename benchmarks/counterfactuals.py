"""Is a network more confident if what a counterfactual map marks is covered?

    python benchmarks/counterfactuals.py --docs --data DIR --rst counterfactuals.rst
    python benchmarks/counterfactuals.py --quick --data DIR

The Grad-CAM paper says so in section 3.3, with a picture of a cat and a dog. Here the fifth of an
image that its map marks the most is covered with the mean colour or with a blur, and the class's
probability and score, the logit, are measured again. This is done for the predicted class, which
has little room to rise, and for the second most likely class, against which the predicted class's
object speaks. For comparison, a random region of the same size, as coarse as a map, is covered. If
the whole image speaks for a class, the map is blank and marks nothing; without its ReLU, there is
still a fifth of the image that speaks the least for the class.

DIR holds folders of images, from which images are drawn evenly. The 95 % intervals are by bootstrap
over the images; comparisons are on the same images.

Reference: Selvaraju et al., "Grad-CAM", IJCV 2020, section 3.3, eq. 12.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradcam_tables import cell, claim
from paper_tables import Table, options_of, parser_of, publish
from torch import Tensor

from sklcam import CAMExplainer
from sklcam.cam import Counterfactual, TopK, upsample
from sklcam.explain import ExplanationWarning
from sklcam.metrics import blur, cover

SHARE = 0.2
DOCS = {"images": 240}
QUICK = {"images": 12}
CLASSES = ("predicted class", "second class")
COVERS = {"mean colour": torch.zeros_like, "blur": blur}
REGIONS = ("counterfactual", "random, same size", "without ReLU", "random, a fifth")


def files_of(folder: Path, n_images: int) -> list[Path]:
    """Return files, drawn evenly from the folders as long as these have enough."""
    endings = {".jpg", ".jpeg", ".png"}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    if not found:
        raise SystemExit(f"{folder} has no images. Give a folder of JPEG or PNG files.")
    order = np.random.default_rng(0).permutation(len(found))
    turns: dict[Path, int] = {}
    ranked = []
    for i in order.tolist():
        turns[found[i].parent] = turns.get(found[i].parent, -1) + 1
        ranked.append((turns[found[i].parent], i))
    return [found[i] for _, i in sorted(ranked)[:n_images]]


@torch.no_grad()
def gains_of(explainer: CAMExplainer, files: Sequence[Path]) -> dict[tuple[str, ...], np.ndarray]:
    """Return how covering changes probability (in points) and score, by class, cover and region.

    Arrays have shape (n_images, 2), with NaN where a map marks nothing.
    """
    opened = explainer.open(files)
    generator = torch.Generator().manual_seed(0)
    found: dict[tuple[str, ...], list[Tensor]] = {}
    for explained in explainer.iter_explained(
        opened,
        explainer.as_target(TopK(2), len(opened)),
        methods=["counterfactual", Counterfactual(relu=False)],
    ):
        images = explained.batch.inputs.images
        noise = torch.rand(len(images), 1, 7, 7, generator=generator).to(images)
        random = upsample(noise, images.shape[2:])[:, 0]
        for place, of_class in enumerate(CLASSES):
            indices = explained.target.indices[:, place]
            before = numbers_of(explainer, explained.output, indices)
            ours, least = (maps[:, place] for maps in explained.maps)
            maps = [ours, as_large(random, ours), least, random]
            for region, map_ in zip(REGIONS, maps, strict=True):
                for name, base in COVERS.items():
                    covered, marked = cover(images, map_, share=SHARE, base=base)
                    after = numbers_of(explainer, explainer.output_of(covered), indices)
                    gain = torch.where(marked.any(dim=(1, 2))[:, None], after - before, torch.nan)
                    found.setdefault((of_class, name, region), []).append(gain.cpu())
    return {key: torch.cat(parts).double().numpy() for key, parts in found.items()}


def as_large(random: Tensor, maps: Tensor) -> Tensor:
    """Return random maps that mark as many pixels as the given maps do."""
    _, marked = cover(maps[:, None], maps, share=SHARE)
    ranks = random.flatten(1).argsort(dim=1, descending=True).argsort(dim=1).view_as(maps)
    return torch.where(ranks < marked.sum(dim=(1, 2), keepdim=True), 1 + random, 0)


def numbers_of(explainer: CAMExplainer, output: Tensor, indices: Tensor) -> Tensor:
    """Return the probability, in per cent, and the logit of each image's class."""
    probabilities = 100 * explainer.probabilities(output)
    both = (each.gather(1, indices[:, None]) for each in (probabilities, output))
    return torch.cat([*both], dim=1)


def table_of(found: dict[tuple[str, ...], np.ndarray], arch: str) -> Table:
    n_images = len(next(iter(found.values())))
    table = Table(
        f"Effect of covering a fifth of an image, {arch}, {n_images} images",
        [
            *("class", "covered by", "region", "images", "probability, points"),
            *("share that rises", "score (logit)", "share that rises"),
        ],
    )
    for (of_class, by, region), gains in found.items():
        some = gains[~np.isnan(gains[:, 0])]
        raised = 100.0 * (some > 0)
        cells = [cell(some[:, 0]), cell(raised[:, 0]), cell(some[:, 1], ".2f"), cell(raised[:, 1])]
        table.add(of_class, by, region, str(len(some)), *cells)
    for of_class in CLASSES:
        for by in COVERS:
            ours, others = (found[of_class, by, each][:, 0] for each in REGIONS[:2])
            ours, others = ours[~np.isnan(ours)], others[~np.isnan(others)]
            about = f"counterfactual, {of_class}, {by}"
            table.claims += [
                claim(f"{about}: covering it raises the probability", ours, 0 * ours),
                claim(f"{about}: more than covering a random region", ours, others),
            ]
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, QUICK, None, DOCS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--arch", default="efficientnet_lite0")
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--images", type=int)
    parser.add_argument("--image-size", type=int)
    options = options_of(parser, arguments)
    # Maps that mark nothing are counted.
    warnings.simplefilter("ignore", ExplanationWarning)
    files = files_of(options.data, options.images)
    publish([table_of(gains_of(fitted(options), files), options.arch)], options, "Selvaraju et al.")


def fitted(options: argparse.Namespace) -> CAMExplainer:
    """Return an explainer of a network that is given by name."""
    weights: Any = None if options.weights == "none" else options.weights
    torch.manual_seed(0)
    explainer = CAMExplainer(
        options.arch, weights=weights, image_size=options.image_size, batch_size=16, verbose=0
    ).fit()
    explainer.model_.to(options.device)
    return explainer


if __name__ == "__main__":
    main()
