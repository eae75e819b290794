"""The numbers in sentences, for readers who do not know the metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sklcam.explain.predictions import NO_ANSWER
from sklcam.metrics import Evaluation
from sklcam.reporting.names import plain_name


def figure(value: float | None) -> str:
    """Return a number with three digits, or a dash if there is none.

    Examples
    --------
    >>> from sklcam.reporting.words import figure
    >>> [figure(value) for value in (0.78512, 12.345, 4321.0, -0.00002, float("nan"))]
    ['0.785', '12.3', '4321', '0.000', '–']
    """
    if value is None or not math.isfinite(value):
        return "–"
    decimals = 3 if abs(value) < 1 else max(0, 2 - int(math.log10(abs(value))))
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # plus 0: no -0.000


def percent(share: float) -> str:
    r"""Return a share in per cent, with one decimal place near 0 and near 100.

    Examples
    --------
    >>> from sklcam.reporting.words import percent
    >>> percent(0.5), percent(0.034), percent(0.9993), percent(1)
    ('50\xa0%', '3.4\xa0%', '99.9\xa0%', '100\xa0%')
    >>> percent(2999 / 3000), percent(1 / 3000)  # neither all nor none
    ('>\xa099.9\xa0%', '<\xa00.1\xa0%')
    """
    hundredths = 100 * share
    if 99.95 <= hundredths < 100:
        return ">\u00a099.9\u00a0%"
    if 0 < hundredths < 0.05:
        return "<\u00a00.1\u00a0%"
    is_near_an_end = 0 < hundredths < 10 or 90 < hundredths < 100
    return f"{hundredths:.{1 if is_near_an_end else 0}f}\u00a0%"


@dataclass(frozen=True)
class Facts:
    """The data for the sentences.

    Attributes
    ----------
    result : Evaluation
    true : list of str or None
        The label of each image; None without labels.
    predicted : list of str or None
        The predicted class of each image.
    n_silent : int
        How many maps are blank.
    n_broken : int
        How many have values that are not finite.
    stranger : float
        The mean similarity of maps of different images; NaN if unknown.
    covered : float
        The mean share of an image that is in its boxes or mask; NaN without these.
    """

    result: Evaluation
    true: Sequence[str] | None
    predicted: Sequence[str | None]
    n_silent: int
    n_broken: int
    stranger: float
    covered: float


def sentences(facts: Facts, *, is_new: bool = True) -> list[str]:
    """Say how often the network is right, and how stable and how focused its maps are.

    Parameters
    ----------
    facts : Facts
    is_new : bool, default=True
        Whether to say how often the network is right; False if another method has said so.

    Returns
    -------
    list of str
        A sentence or two on each, if it was measured, and on maps that are blank or not finite.
    """
    means = facts.result.means()
    of = len(facts.predicted)
    found = [_rightness(facts) if is_new else ""]
    if facts.n_silent < of:
        found += [_stability(means, facts.stranger), _focus(means, facts.covered)]
    if facts.n_silent:
        are = "is" if facts.n_silent == 1 else "are"
        found.append(
            f"{facts.n_silent} of {of} maps {are} blank: nothing in the image speaks for the "
            "class, so the numbers of such maps mean nothing."
        )
    if facts.n_broken:
        are = "is" if facts.n_broken == 1 else "are"
        found.append(
            f"{facts.n_broken} of {of} maps {are} not finite (NaN or infinite), so the means that "
            "include them are unknown."
        )
    return [sentence for sentence in found if sentence]


def _rightness(facts: Facts) -> str:
    if facts.true is None or all(label is None for label in facts.predicted):
        return ""
    n_images = len(facts.true)
    n_right = sum(a == b for a, b in zip(facts.true, facts.predicted, strict=True))
    label, most = Counter(facts.true).most_common(1)[0]
    share = percent(n_right / n_images)
    images = "image" if n_images == 1 else "images"
    text = f"The network is right on {n_right} of {n_images} {images} ({share})"
    if n_unanswered := sum(answer == NO_ANSWER for answer in facts.predicted):
        text += f", and its output is NaN on {n_unanswered}"
    if most == n_images:
        return f"{text}; all of them are labelled {label}."
    return f"{text}; always answering {label} would be right for {percent(most / n_images)}."


def _stability(means: Mapping[str, float], stranger: float) -> str:
    value = means.get("consistency", math.nan)
    if not math.isfinite(value):
        return ""
    text = (
        f"Maps of an image and its crops and flips have a similarity of {value:.2f} (1 is "
        "identical)"
    )
    if not math.isfinite(stranger):
        return f"{text}."
    return f"{text}; maps of different images, {stranger:.2f}."


def _focus(means: Mapping[str, float], covered: float) -> str:
    text = ""
    area = means.get("complexity", math.nan)
    if math.isfinite(area):
        text = (
            f"The average map covers {percent(area)} of its image (marking everything would be 100"
            "\u00a0%)."
        )
    lost = means.get("average_drop", math.nan)
    if math.isfinite(lost):
        text += (
            f" If it sees only that part, the network keeps {percent(1 - lost)} of its confidence."
        )
    hits = means.get("pointing_game", math.nan)
    if math.isfinite(hits):
        text += f" The brightest point is on the object in {percent(hits)} of the images"
        chance = f"; a random point, in {percent(covered)}" if math.isfinite(covered) else ""
        text += f"{chance}."
    return text.strip()


def comparison(verdicts: Mapping[str, str], first: str) -> str:
    """Say in which metrics a model or method is better or worse than the first.

    Parameters
    ----------
    verdicts : mapping of str to str
        The verdict on each metric; see :func:`~sklcam.metrics.verdicts.verdict`.
    first : str
        The name of the first.

    Examples
    --------
    >>> from sklcam.reporting.words import comparison
    >>> comparison({"accuracy": "no clear difference", "adcc": "better"}, "baseline")
    'Compared with baseline: better in overall score (ADCC); no clear difference in accuracy.'
    """
    by_word: dict[str, list[str]] = {}
    for name, word in verdicts.items():
        by_word.setdefault(word, []).append(plain_name(name))
    parts = [
        f"{word} in {_listed(by_word[word])}" for word in ("better", "worse") if word in by_word
    ]
    if unsure := by_word.get("no clear difference"):
        parts.append(f"no clear difference in {_listed(unsure)}")
    return f"Compared with {first}: {'; '.join(parts)}." if parts else ""


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def classes_of(labels: Sequence[str]) -> str:
    """Return the number of images of each class, the most frequent first.

    Examples
    --------
    >>> from sklcam.reporting.words import classes_of
    >>> classes_of(["cat", "dog", "dog"])
    'dog 2, cat 1'
    >>> classes_of(["cat, dog", "cat"])  # an image of both, and another
    'cat, dog 1; cat 1'
    """
    counts = Counter(labels).most_common()
    most = 8
    between = "; " if any("," in label for label, _ in counts) else ", "
    text = between.join(f"{label} {count}" for label, count in counts[:most])
    return text if len(counts) <= most else f"{text} and {len(counts) - most} more"


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of some values, or NaN if there are none."""
    return float(np.mean(values)) if values else math.nan
