"""How often the intervals of a study contain the truth, by what is resampled.

The program simulates studies of kind "class" with a known share of right answers: the logits of
raters and images are normally distributed. For studies of several sizes, it prints how often the 95
% interval of ``sklcam.study.analyse`` contains that share, and the interval's mean width. For
comparison, it prints the same for the usual interval of single answers, which treats each answer as
if it came from another rater and another image.

    python benchmarks/study_intervals.py
    python benchmarks/study_intervals.py --n-studies 40 --sizes 6x10
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from sklcam.study import analyse
from sklcam.study.analysis import Resample

MIDDLE, OF_RATERS, OF_IMAGES = 0.8, 0.7, 1.0  # on the logit: the mean, and standard deviations
N_RESAMPLES = 400


def share_of_right_answers() -> float:
    """Return the share of right answers over all possible raters and images, by quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    spread = np.hypot(OF_RATERS, OF_IMAGES)
    return float(weights @ (1 / (1 + np.exp(-MIDDLE - spread * points))) / weights.sum())


def simulated(
    n_raters: int, n_images: int, generator: np.random.Generator
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the answers to a study with one question per image, and its key."""
    raters = generator.normal(0, OF_RATERS, (n_raters, 1))
    images = generator.normal(0, OF_IMAGES, n_images)
    chance = 1 / (1 + np.exp(-MIDDLE - raters - images))
    right = (generator.random(chance.shape) < chance).astype(int).tolist()
    items = {str(i): {"image": i, "truth": 1, "method": "a method"} for i in range(n_images)}
    head = {"version": 1, "study": "simulated"}
    key = {**head, "format": "sklcam-study-key", "kind": "class", "methods": ["a method"]}
    head["format"] = "sklcam-study-answers"
    answers = [
        {
            **head,
            "rater": str(i),
            "answers": [{"item": str(j), "value": value} for j, value in enumerate(row)],
        }
        for i, row in enumerate(right)
    ]
    return answers, {**key, "items": items}


def intervals(answers: list[dict[str, Any]], key: dict[str, Any]) -> dict[str, Sequence[float]]:
    """Return the ends of each kind of interval."""
    found: dict[str, Sequence[float]] = {}
    for resample in get_args(Resample):
        result = analyse(answers, key, resample=resample, n_resamples=N_RESAMPLES)
        row = result.methods["a method"]
        found[resample] = (row.low, row.high)
    half = 1.96 * (row.mean * (1 - row.mean) / row.n) ** 0.5
    return {**found, "single answers": (row.mean - half, row.mean + half)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["6x10", "12x20", "30x45"])
    parser.add_argument("--n-studies", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    truth = share_of_right_answers()
    generator = np.random.default_rng(options.seed)
    print(f"{options.n_studies} studies of each size, {truth:.1%} of the answers right")
    for size in options.sizes:
        n_raters, n_images = map(int, size.split("x"))
        found = [
            intervals(*simulated(n_raters, n_images, generator)) for _ in range(options.n_studies)
        ]
        print(f"{n_raters} raters, {n_images} images")
        for name in found[0]:
            low, high = np.array([each[name] for each in found]).T
            holds = ((low <= truth) & (truth <= high)).mean()
            print(f"    {name:16}{holds:7.1%}, {(high - low).mean():.3f} wide")


if __name__ == "__main__":
    main()
