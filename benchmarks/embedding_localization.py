"""Table 1 of Bachhawat: explanations of embedding networks, compared with boxes and masks.

    python benchmarks/embedding_localization.py --docs --data DIR DIR --results runs.jsonl
    python benchmarks/embedding_localization.py --full --data CUB_200_2011 --device cuda --rst FILE

The program trains embedding networks from pretrained weights, each initialisation with a head of
its own, and explains images whose objects are known. It says how much of a map lies on the object,
and how often the box around its largest part fits (IoU 0.5): for a uniform map and a map of the
centre, for Chen et al.'s transferred weights, for EmbeddingCAM with single points and with mean
proxies, and for mean proxies compared with those of the other classes (``contrast=True``). It does
the same for the pretrained network without a head and without further training.

The contents of a DIR decide the protocol:

``boxes.csv``, with the columns ``path, label, x1, y1, x2, y2``: images of one class are split into
    training images and images to explain, each for its own class. Images of several classes are
    for the pointing game: is the map for a class highest in one of its boxes?

``train/<class>``, ``test/<class>`` and ``<unseen>_boxes.csv``, with the columns ``path, x1, y1, x2,
    y2``: an open set. The network is trained on half of the classes, every other one by name,
    without the unseen class, whose images are explained. The mean proxy of the unseen class is
    made of these images themselves, as in the paper, and compared with the proxies of the classes
    in the other half, made of their test images. Chen et al.'s weights are those of the nearest
    training image. Recall at 1 on the test images of the other half says how well the network
    separates classes.

CUB-200-2011 or Caltech 101 as published: the paper's open set. The first half of the classes is
    for training, and all images of the others are explained, and compared with masks as well.

``--docs`` trains on 1500 images, as for the tables in the docs, and ``--quick`` on 600; ``--full``
is the paper's setting, for a GPU. You can override any of their options; ``--weights none`` starts
from random weights.

The measurements of each network are written to ``--results`` at once, and are not computed again,
so an interrupted program resumes. The 95 % intervals are by bootstrap over the images, for which
the values of the initialisations are averaged first; deviations are over the initialisations. At
the end, the program fails if pytorch-grad-cam's maps differ.

Reference: Bachhawat, "Generalizing GradCAM for Embedding Networks", section 4. Chen et al.,
"Adapting Grad-CAM for Embedding Networks", WACV 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from embedding_runs import (
    ALL,
    CENTRE,
    CHANNELS,
    CHEN,
    CONTRAST,
    MEAN,
    SINGLE,
    THRESHOLDS,
    TOP,
    UNIFORM,
    Run,
    measured,
    read,
)
from paper_tables import Claim, Results, Table, interval_of, options_of, parser_of, publish
from scipy import stats

# CUB-200, ResNet-50: ratios in the box and in the mask, with all channels and 50, and the accuracy.
OF_PAPER = {
    UNIFORM: ("0.522", "", "0.274", "", ""),
    CHEN: ("0.643", "0.760", "0.416", "0.534", "0.797"),
    SINGLE: ("0.776 ± 0.004", "0.757 ± 0.003", "0.543 ± 0.004", "0.520 ± 0.004", "0.776"),
    MEAN: ("0.789 ± 0.005", "0.764 ± 0.004", "0.551 ± 0.006", "0.524 ± 0.005", "0.768"),
}
USUAL = 0.2  # the paper's threshold
TOLERANCE = 1e-3  # bound on the largest difference from a peer's map in [0, 1]

DOCS = {"arch": "efficientnet_lite0", "image_size": 224, "inits": 2, "images_seen": 1500}
QUICK = {"arch": "efficientnet_lite0", "image_size": 128, "inits": 1, "images_seen": 600}
FULL = {"arch": "resnet50", "image_size": 224, "inits": 8, "images_seen": 200_000}


# Tables


class Found:
    """The measurements of networks that differ by their initialisation."""

    def __init__(self, measures: Sequence[dict[str, Any]]):
        self.measures = measures

    def ratio(self, method: str, channels: str = ALL, of: str = "box") -> np.ndarray:
        """Return ratios of shape (n_inits, n_images), in hundredths."""
        return 100 * np.array([m["rows"][method][channels][of] for m in self.measures])

    def accuracy(self, method: str, channels: str = ALL, threshold: float = USUAL) -> np.ndarray:
        place = THRESHOLDS.index(threshold)
        fits = [m["rows"][method][channels]["fits"][place] for m in self.measures]
        return 100 * np.array(fits)

    def channels(self, method: str) -> list[str]:
        return list(self.measures[0]["rows"][method])

    def pointing(self, method: str) -> np.ndarray:
        return 100 * np.array([m["pointing"][method] for m in self.measures])


def cell(values: np.ndarray) -> str:
    value, low, high = (bound / 100 for bound in interval_of(np.mean, values.mean(axis=0)))
    deviation = f" ± {values.mean(axis=1).std(ddof=1) / 100:.3f}" if len(values) > 1 else ""
    return f"{value:.3f}{deviation} ({low:.3f} to {high:.3f})"


def tables_of(run: Run, inits: Sequence[int], results: Results) -> list[Table]:
    """Return the paper's table for one set of images, and those of thresholds and of scenes."""
    data, name = read(run.data, run.train_share), Path(run.data).name
    networks = {
        "trained": Found([results[replace(run, init=init)] for init in inits]),
        "as it is": Found([results[replace(run, init=None)]]),
    }
    start = "random" if run.weights is None else "pretrained"
    figures = Table(
        f"{name}: {run.arch} from {start} weights, {run.criterion} loss, {len(inits)} "
        f"initialisation{'s' * (len(inits) > 1)} trained on {len(data.train)} images of "
        f"{len(np.unique(data.train.labels))} classes; {len(data.explained)} images explained at "
        f"{run.image_size} pixels",
        ["network", "method", *(f"ratio in the box, {channels}" for channels in CHANNELS)],
    )
    has_masks = data.explained.has_masks
    figures.header += [f"ratio in the mask, {channels}" for channels in CHANNELS] * has_masks
    figures.header += [f"accuracy, {channels}" for channels in CHANNELS]
    sweep = Table(
        f"{name}: accuracy by threshold, all channels",
        ["network", "method", *(f"{threshold:g}" for threshold in THRESHOLDS)],
    )
    scenes = Table(
        f"{name}: pointing game, {0 if data.scenes is None else len(data.scenes)} classes in "
        f"images with several, at {run.image_size} pixels",
        ["network", "chance", CHEN, SINGLE, MEAN, CONTRAST],
    )
    shares = ("box", "mask") if has_masks else ("box",)
    for title, found in networks.items():
        recall = np.mean([m["recall"] for m in found.measures])
        title = f"{title}, recall at 1 {recall:.3f}"
        for method in (UNIFORM, CENTRE, CHEN, SINGLE, MEAN, CONTRAST):
            ratios = [partial(found.ratio, of=share) for share in shares]
            figures.add(
                title,
                method,
                *(
                    cell(value(method, channels)) if channels in found.channels(method) else ""
                    for value in (*ratios, found.accuracy)
                    for channels in CHANNELS
                ),
            )
            accuracies = [found.accuracy(method, threshold=t).mean() / 100 for t in THRESHOLDS]
            sweep.add(title, method, *(f"{accuracy:.3f}" for accuracy in accuracies))
        if data.scenes is not None:
            scenes.add(title, *(cell(found.pointing(method)) for method in scenes.header[1:]))
    for method, (box, top_box, mask, top_mask, accuracy) in OF_PAPER.items():
        masks = (mask, top_mask) * has_masks
        figures.add("paper, CUB-200", method, box, top_box, *masks, accuracy, "")
    figures.claims = claims_of(name, *networks.values(), shares)
    if data.scenes is not None:
        scenes.claims = claims_of_scenes(name, networks)
    return [figures, sweep, *([scenes] if scenes.rows else [])]


def more(text: str, better: np.ndarray, worse: np.ndarray, less: float = 0) -> Claim:
    """Claim that a mean is larger than another, or at most ``less`` points below it."""
    of_images = better.mean(axis=0), worse.mean(axis=0)
    shown = f" (shown: the difference plus {less})" if less else ""
    found = interval_of(lambda a, b: a.mean() - b.mean() + less, *of_images)
    return Claim(text + shown, *found, n_images=len(of_images[0]))


def claims_of(name: str, trained: Found, as_it_is: Found, shares: Sequence[str]) -> list[Claim]:
    """Return the paper's claims about ratios and accuracies, and about the effect of training."""
    claims = []
    for share in shares:
        ratio, control = partial(trained.ratio, of=share), partial(as_it_is.ratio, of=share)
        more_there = f"more of the map in the {share}"
        for method in (SINGLE, MEAN):
            what, ours = f"{name}, {method}", ratio(method)
            alike = f"at most two points less in the {share} than with {CHEN}, {TOP}"
            claims += [
                more(f"{what}: {more_there} than for a uniform one", ours, ratio(UNIFORM)),
                more(
                    f"{what} (not in the paper): {more_there} than for the {CENTRE}",
                    *(ours, ratio(CENTRE)),
                ),
                more(f"{what}: {more_there} than with {CHEN}, {ALL}", ours, ratio(CHEN)),
                more(f"{what}: {alike}", ratio(method, TOP), ratio(CHEN, TOP), less=2),
                more(f"{what}: {more_there} with {ALL} than the {TOP}", ours, ratio(method, TOP)),
                more(
                    f"{what}, network as it is (not in the paper): {more_there} than for a uniform "
                    "one",
                    *(control(method), control(UNIFORM)),
                ),
                more(
                    f"{what} (not in the paper): {more_there} than before training",
                    *(ours, control(method)),
                ),
            ]
        claims += [
            more(
                f"{name}, {CHEN}: {more_there} with the {TOP} than {ALL}",
                *(ratio(CHEN, TOP), ratio(CHEN)),
            ),
            more(
                f"{name}: {more_there} with the {MEAN} than with the {SINGLE}",
                *(ratio(MEAN), ratio(SINGLE)),
            ),
        ]
    for method in (SINGLE, MEAN):
        what = f"{name}, {method}"
        claims.append(
            more(
                f"{what}: accuracy at most five points below that of {CHEN}, {TOP}",
                *(trained.accuracy(method), trained.accuracy(CHEN, TOP)),
                less=5,
            )
        )
        per_threshold = [trained.accuracy(method, threshold=t).mean(axis=0) for t in THRESHOLDS]
        claims.append(
            Claim(
                f"{what}: accuracy above 60 at each threshold (shown: the lowest minus 60)",
                *interval_of(lambda *of: min(each.mean() for each in of) - 60, *per_threshold),
                n_images=len(per_threshold[0]),
            )
        )
        if len(trained.measures) > 1:
            claims.append(stable(what, trained.ratio(method)))
    return claims


def claims_of_scenes(name: str, networks: dict[str, Found]) -> list[Claim]:
    return [
        more(
            f"{name}, network {title} (not in the paper): {CONTRAST} points at the requested class "
            f"more often than the {MEAN}",
            found.pointing(CONTRAST),
            found.pointing(MEAN),
        )
        for title, found in networks.items()
    ]


def stable(what: str, ratios: np.ndarray) -> Claim:
    """Claim that the deviation over (normally distributed) initialisations is below a point."""
    freedom = len(ratios) - 1
    deviation = ratios.mean(axis=1).std(ddof=1)
    bounds = deviation * np.sqrt(freedom / stats.chi2.ppf((0.025, 0.975), freedom))
    text = f"{what}: deviation over initialisations below one point (shown: one minus it)"
    return Claim(text, *(float(1 - bound) for bound in (deviation, *bounds)))


# The program


def told(run: Run, measures: dict[str, Any]) -> str:
    ratios = {name: np.mean(of[ALL]["box"]) for name, of in measures["rows"].items()}
    means = "  ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
    of = "as it is" if run.init is None else f"initialisation {run.init}"
    return (
        f"{Path(run.data).name}, {of}:  recall {measures['recall']:.3f}  {means}  "
        f"({measures['seconds']} s)"
    )


def report_peer(run: Run, peer: dict[str, Any]) -> bool:
    """Print how our maps and time compare with the peer's, and return whether the maps agree."""
    of, times = "as it is" if run.init is None else f"initialisation {run.init}", peer["times"]
    print(
        f"pytorch-grad-cam, {Path(run.data).name}, {of}: maps differ by {peer['difference']:.1e} "
        f"at most; its time / ours {median(times):.2f} [{min(times):.2f} to {max(times):.2f}]"
    )
    return peer["difference"] <= TOLERANCE


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, QUICK, FULL, DOCS)
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR")
    parser.add_argument("--arch")
    parser.add_argument("--weights", default="DEFAULT", help='"none" for random weights')
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--inits", type=int, help="networks that are trained")
    parser.add_argument(
        "--images-seen", type=int, help="images in training, each as often as it is seen"
    )
    parser.add_argument("--criterion", default="margin", help="criterion of EmbeddingNet, by name")
    parser.add_argument("--embedding-dim", type=int, default=128)
    parser.add_argument(
        "--lr", type=float, default=3e-4, help="rate of AdamW; proxies get ten times that"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--train-share",
        type=float,
        default=2 / 3,
        help="share of training images, if there is no split",
    )
    parser.add_argument("--peer-images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timing against the peer")
    parser.add_argument("--jobs", type=int, default=1, help="networks trained at the same time")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="a file of all measurements, which the program extends",
    )
    options = options_of(parser, arguments)
    options.weights = None if options.weights == "none" else options.weights

    shared = {name: value for name, value in vars(options).items() if name in Run.__annotations__}
    sets = [Run(**{**shared, "init": None, "data": folder}) for folder in options.data]
    runs = [replace(run, init=init) for run in sets for init in (None, *range(options.inits))]
    results = Results(options.results, measured, told)
    results.complete(runs, options.jobs)
    tables = [table for run in sets for table in tables_of(run, range(options.inits), results)]
    publish(tables, options, "Bachhawat")
    print()
    agree = [report_peer(run, results[run]["peer"]) for run in runs]
    if not all(agree):
        raise SystemExit("Maps differ.")


if __name__ == "__main__":
    main()
