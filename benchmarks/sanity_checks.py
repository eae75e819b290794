"""The sanity checks of Adebayo et al.: do maps change if what the network has learned is undone?

    python benchmarks/sanity_checks.py --quick --data DIR --rst sanity.rst
    python benchmarks/sanity_checks.py --full --data IMAGENET --device cuda

cascading: layers are made random one after the other, from the output backwards.
independent: only the layers of one step are random; all others are as trained.

The explained class is always the one that the trained network predicts. Likeness is the rank
correlation of the maps' absolute values. In the same pass, each map is compared with the map of
another class, drawn at random (Sixt et al.), and with the maps of other images.

DIR holds images, at any depth, in folders named by class, or it is ImageNet, whose ``val`` is used.
Without ``--data``, the photographs that come with scikit-image and scikit-learn are explained. The
95 % intervals are by bootstrap over the images.

Reference: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, sections 3 and 4. Sixt
et al., "When Explanations Lie", ICML 2020, section 5.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cam_runs import images_of
from paper_tables import Claim, Table, interval_of, options_of, parser_of, publish

from sklcam import CAMExplainer
from sklcam.explain import ExplanationWarning
from sklcam.metrics import SanityCheck, sanity_check

LIKENESS = "rank_correlation"
METHODS = (
    *("gradcam", "gradcam++", "layercam", "saliency", "deconvnet", "guidedbackprop"),
    "guidedgradcam",
)
# What the papers say about the weights, and about the class.
DEPENDS = {"gradcam": True, "saliency": True, "guidedbackprop": False, "guidedgradcam": False}
OF_CLASS = {"guidedbackprop": False}
SHOWN = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "layercam": "LayerCAM",
    "saliency": "the gradient",
    "deconvnet": "deconvolution",
    "guidedbackprop": "guided backpropagation",
    "guidedgradcam": "Guided Grad-CAM",
}

QUICK = {"images": 24, "layers": 16}
FULL = {"images": 200, "layers": 50}

say = partial(print, file=sys.stderr, flush=True)


def images(options: argparse.Namespace) -> list[Any]:
    if options.data is not None:
        return images_of(options)[0]
    from photographs import photographs

    return photographs()[: options.images]


def figure(values: np.ndarray) -> str:
    """Return the mean of finite values with its interval, in hundredths."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "-"
    mean, low, high = (100 * each for each in interval_of(np.mean, finite))
    return f"{mean:.0f} ({low:.0f} to {high:.0f})"


def table_of(check: SanityCheck, options: argparse.Namespace, n_images: int) -> Table:
    steps = check.steps
    places = sorted({0, len(steps) // 2, len(steps) - 1})
    reach = "down to" if check.mode == "cascading" else "only"
    table = Table(
        f"{check.mode.capitalize()} randomisation of {options.arch}, rank correlation in "
        f"hundredths, {n_images} images",
        ["", *(f"{reach} {steps[i]}" for i in places), f"mean of {len(steps)} steps",
         "other images", "another class", "verdict"],
    )  # fmt: skip
    verdicts = check.verdict(LIKENESS)
    for name, values in check.randomized[LIKENESS].items():
        table.add(
            SHOWN.get(name, name),
            *(figure(values[:, i]) for i in places),
            figure(values.mean(axis=1)),
            figure(check.other_images[LIKENESS][name]),
            figure(check.other_classes[LIKENESS][name]),
            verdicts[name],
        )
    if check.mode == "cascading":
        table.claims = claims_of(check, n_images)
    return table


def claims_of(check: SanityCheck, n_images: int) -> list[Claim]:
    """Return the papers' claims: how far maps are on the claimed side of the middle.

    The middle lies between an unchanged map and the map of another image.
    """
    found = []
    tests = (
        (
            "the weights",
            DEPENDS,
            {n: v.mean(axis=1) for n, v in check.randomized[LIKENESS].items()},
        ),
        ("the class", OF_CLASS, check.other_classes[LIKENESS]),
    )
    for what, expected, values in tests:
        for name, depends in expected.items():
            if name not in values:
                continue
            margins = values[name] - (1 + check.other_images[LIKENESS][name]) / 2
            margins = margins[np.isfinite(margins)] * (-100 if depends else 100)
            word = "sensitive" if depends else "insensitive"
            text = f"{SHOWN[name]} is {word} to {what}"
            if len(margins):
                value = interval_of(np.mean, margins)
                found.append(Claim(text, *value, unit="hundredths", n_images=n_images))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, QUICK, FULL)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--arch", default="efficientnet_lite0")
    parser.add_argument("--weights", default="DEFAULT", help='"none" for random weights')
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int)
    parser.add_argument("--classes", type=int, help="only the first classes of DIR")
    parser.add_argument("--layers", type=int, help="number of steps")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--modes", nargs="+", default=("cascading", "independent"))
    parser.add_argument("--batch-size", type=int, default=8)
    options = options_of(parser, arguments)
    weights = None if options.weights == "none" else options.weights
    warnings.simplefilter("ignore", ExplanationWarning)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*random weights")
        explainer = CAMExplainer(
            options.arch,
            weights=weights,
            image_size=options.image_size,
            batch_size=options.batch_size,
            verbose=0,
        ).fit()
    explainer.model_.to(options.device)
    X = images(options)
    tables = []
    for mode in options.modes:
        say(f"{mode}, {len(X)} images, {time.strftime('%H:%M:%S')}")
        check = sanity_check(
            explainer,
            X,
            method=list(options.methods),
            mode=mode,
            layers=options.layers,
            progress=False,
        )
        say(f"{time.strftime('%H:%M:%S')}\n{check}")
        tables.append(table_of(check, options, len(X)))
    publish(tables, options, "Adebayo et al.")


if __name__ == "__main__":
    main()
