"""What raters' answers say about methods and models: means with their intervals, and agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from sklearn.utils import Bunch, check_random_state

from sklcam._validation import check_count, check_number, suggestion
from sklcam.study.agreement import krippendorff_alpha
from sklcam.study.answers import Answers, Document, read_answers, read_key

Resample = Literal["both", "raters", "images"]

_OVER: dict[Resample, str] = {
    "both": "raters and images",
    "raters": "raters",
    "images": "images",
}


@dataclass(frozen=True)
class StudyResult:
    """What the answers to a study say; made by :func:`analyse`.

    Its text is a table.

    Attributes
    ----------
    kind : {"class", "reliability"}
    methods : dict of str to Bunch
        For each method, ``mean``, and ``low`` and ``high``, the ends of its interval; ``n``, how
        many answers it has, ``n_raters``, from how many raters, and ``n_images``, about how many
        images; and ``shares``, of wrong (0) and right (1) answers or of each rating. For
        ``kind="class"`` the mean is the share of right answers, from 0 to 1. For "reliability" it
        is the mean rating, from -2 to 2, above 0 if raters prefer the better model. Without answers
        it is NaN.
    models : dict of str to dict of str to Bunch
        For ``kind="class"`` with several models, the same for each model.
    better : str or None
        For ``kind="reliability"``, the model that is known to be more reliable.
    agreement : float
        Krippendorff's alpha of all answers. For ``kind="class"`` it is nominal, of the first or
        second answer, which are in random order, so chance is 0. For "reliability" it is of an
        interval scale.
    raters : list of str
        The raters whose answers count.
    failed : dict of str to int
        How many attention checks each rater failed who is left out.
    incomplete : dict of str to int
        How many answers are missing from each rater who is not in ``failed``. A rater who has not
        answered any question about a map is here, and not in ``raters``.
    seconds : dict of str to float
        The median time per question of each rater who counts.
    first : float
        The share of answers for the first of two, or for the model on the left. If it is far from
        0.5, raters have looked at places and not at pictures. NaN without such answers.
    level : float
    resample : {"both", "raters", "images"}

    Examples
    --------
    >>> from sklcam import study
    >>> items = {
    ...     "a": {"image": 0, "truth": 1, "model": "", "method": "gradcam"},
    ...     "b": {"image": 1, "truth": 0, "model": "", "method": "gradcam"},
    ... }
    >>> key = {"format": "sklcam-study-key", "version": 1, "study": "s", "kind": "class",
    ...        "methods": ["gradcam"], "items": items}
    >>> answers = [
    ...     {"format": "sklcam-study-answers", "version": 1, "study": "s", "rater": rater,
    ...      "answers": [{"item": "a", "value": 1}, {"item": "b", "value": value}]}
    ...     for rater, value in [("Ann", 0), ("Bob", 1)]
    ... ]
    >>> result = study.analyse(answers, key)
    >>> result.methods["gradcam"].mean, result.raters
    (0.75, ['Ann', 'Bob'])
    """

    kind: str
    methods: dict[str, Bunch]
    models: dict[str, dict[str, Bunch]]
    better: str | None
    agreement: float
    raters: list[str]
    failed: dict[str, int]
    incomplete: dict[str, int]
    seconds: dict[str, float]
    first: float
    level: float
    resample: Resample
    _means: dict[str, np.ndarray] = field(repr=False)

    def difference(self, method: str, other: str) -> Bunch:
        """Return how much higher the mean of one method is than that of another.

        Parameters
        ----------
        method, other : str

        Returns
        -------
        Bunch
            ``mean``, ``low`` and ``high``, from the same resamples of raters and images for both.

        Raises
        ------
        ValueError
            If one of them was not in the study.
        """
        for name in (method, other):
            if name not in self._means:
                known = suggestion(name, self._means)
                raise ValueError(f"There is no method {name!r} in the study. {known}")
        return _interval(self._means[method] - self._means[other], self.level)

    def __str__(self) -> str:
        what = "right answers" if self.kind == "class" else f"for {self.better}"
        over = f"{self.level:.0%} intervals by bootstrap over {_OVER[self.resample]}"
        width = max(len("method"), *map(len, self.methods))
        if self.models:
            width = max(width, *(2 + len(name) for of in self.models.values() for name in of))
        lines = [f"{len(self.raters)} raters, {over}", "", f"{'method':{width}}  {what}"]
        lines += [f"{name:{width}}  {self._written(row)}" for name, row in self.methods.items()]
        for model, rows in self.models.items():
            lines.append(model)
            lines += [f"  {name:{width - 2}}  {self._written(row)}" for name, row in rows.items()]
        lines += ["", f"agreement (Krippendorff's alpha): {self.agreement:.3f}"]
        for what, who in (
            ("left out, with the number of failed checks", self.failed),
            ("incomplete, with the number of missing answers", self.incomplete),
        ):
            if who:
                lines.append(f"{what}: {', '.join(f'{name} {n}' for name, n in who.items())}")
        return "\n".join(lines)

    def _written(self, row: Bunch) -> str:
        if self.kind == "class":
            return f"{row.mean:.1%} ({row.low:.1%} to {row.high:.1%}), {row.n} answers"
        return f"{row.mean:+.2f} ({row.low:+.2f} to {row.high:+.2f}), {row.n} answers"


def analyse(
    answers: Document | Sequence[Document],
    key: Document,
    *,
    max_failed: int = 0,
    resample: Resample = "both",
    level: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | np.random.RandomState | None = 0,
) -> StudyResult:
    """Return what the answers to a study say about methods and models.

    Parameters
    ----------
    answers : path, dict, or list of these
        The files that raters have saved, or their content.
    key : path or dict
        The key that :func:`build` wrote beside the page, and returned.
    max_failed : int, default=0
        Raters who failed more attention checks than this are left out. A check without an answer
        does not count as failed.
    resample : {"both", "raters", "images"}, default="both"
        What the intervals generalise to, by draws with replacement: other raters and images; other
        raters, for only these images; or other images, for only these raters.
    level : float, default=0.95
        The level of the intervals, which lie between percentiles.
    n_resamples : int, default=2000
        The number of resamples.
    random_state : int, RandomState or None, default=0
        Seed of the resamples.

    Returns
    -------
    StudyResult

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If an argument is invalid; if a file is not JSON, belongs to another study, or has an
        unknown version of the format; if a rater appears twice; or if no rater has passed the
        checks, or answered a question.

    Notes
    -----
    Answers of one rater are alike, and so are answers about one image, so single answers are not
    independent. With ``resample="both"`` a resample draws raters and, independently, images. An
    answer counts as often as its rater was drawn, times how often its image was. This is the
    pigeonhole bootstrap, whose intervals are somewhat wide rather than too narrow.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, sections 5.1 and 5.2; Owen, "The pigeonhole bootstrap",
    Annals of Applied Statistics 2007.

    Examples
    --------
    Two models and one method; Ann prefers the better one, which is once on each side:

    >>> from sklcam import study
    >>> pair = {"image": 0, "method": "gradcam"}
    >>> items = {"a": {**pair, "models": ["old", "new"]}, "b": {**pair, "models": ["new", "old"]}}
    >>> key = {"format": "sklcam-study-key", "version": 1, "study": "s", "kind": "reliability",
    ...        "better": "new", "methods": ["gradcam"], "items": items}
    >>> answers = {"format": "sklcam-study-answers", "version": 1, "study": "s", "rater": "Ann",
    ...            "answers": [{"item": "a", "value": 2}, {"item": "b", "value": -1}]}
    >>> study.analyse(answers, key).methods["gradcam"].mean
    1.5
    """
    check_count("max_failed", max_failed, 0)
    if resample not in get_args(Resample):
        raise ValueError(f'resample must be "both", "raters" or "images"; got {resample!r}.')
    check_number("level", level, 0, 1, closed="neither")
    check_count("n_resamples", n_resamples)
    known = read_key(key)
    everybody = read_answers(answers, known)
    asked = {name: item for name, item in known["items"].items() if not item.get("check")}
    failed = {each.rater: _n_failed(each, known["items"]) for each in everybody}
    attentive = [each for each in everybody if failed[each.rater] <= max_failed]
    if not attentive:
        raise ValueError(
            f"Every rater failed more than max_failed={max_failed} attention checks: "
            f"{', '.join(f'{who} {n}' for who, n in failed.items())}. Raise max_failed, or ask "
            "others."
        )
    raters = [each for each in attentive if asked.keys() & each.values.keys()]
    if not raters:
        raise ValueError(
            "There is no answer to a question about a map: "
            f"{', '.join(each.rater for each in attentive)} saved before the first one."
        )
    table = np.array([[each.values.get(name, np.nan) for name in asked] for each in raters])
    is_class = known["kind"] == "class"
    of = _Items(asked, known)
    draws = _Draws(len(raters), of.image, resample, n_resamples, random_state)
    scores = of.scores(table)
    groups = {name: of.method == name for name in known["methods"]}
    means = {name: draws.means(scores, chosen) for name, chosen in groups.items()}
    names = [*dict.fromkeys(of.model)] if is_class else []
    return StudyResult(
        kind=known["kind"],
        methods={name: _row(scores, of, groups[name], means[name], level) for name in groups},
        models={
            str(model): {
                name: _row(scores, of, part, draws.means(scores, part), level)
                for name, chosen in groups.items()
                if (part := chosen & (of.model == model)).any()
            }
            for model in names
            if len(names) > 1
        },
        better=known.get("better"),
        agreement=krippendorff_alpha(table, "nominal" if is_class else "interval"),
        raters=[each.rater for each in raters],
        failed={who: n for who, n in failed.items() if n > max_failed},
        incomplete=_incomplete(attentive, known["items"]),
        seconds={each.rater: _median(each, asked) for each in raters},
        first=_first(raters, asked, is_class=is_class),
        level=level,
        resample=resample,
        _means=means,
    )


# Raters


def _n_failed(answers: Answers, items: Mapping[str, Any]) -> int:
    checks = {name: item["truth"] for name, item in items.items() if item.get("check")}
    return sum(answers.values.get(name, truth) != truth for name, truth in checks.items())


def _incomplete(raters: Sequence[Answers], items: Mapping[str, Any]) -> dict[str, int]:
    missing = {each.rater: len(items) - len(each.values) for each in raters}
    return {who: n for who, n in missing.items() if n}


def _median(answers: Answers, asked: Mapping[str, Any]) -> float:
    seconds = np.array([answers.seconds.get(name, np.nan) for name in asked])
    known = seconds[~np.isnan(seconds)]
    return float(np.median(known)) if len(known) else float("nan")


def _first(raters: Sequence[Answers], asked: Mapping[str, Any], *, is_class: bool) -> float:
    """Return the share of answers for the first class, or for the model on the left."""
    seen = []
    for each in raters:
        for name in asked.keys() & each.values.keys():
            side = 2 * each.values[name] - 1 if is_class else each.values[name]
            seen.append(-side if each.swapped[name] else side)
    sides = np.array([side for side in seen if side])
    return float((sides < 0).mean()) if len(sides) else float("nan")


# Questions


class _Items:
    """The questions, in arrays with one entry per question."""

    def __init__(self, asked: Mapping[str, Any], key: Mapping[str, Any]):
        items = [*asked.values()]
        self.kind = key["kind"]
        self.image = np.array([item["image"] for item in items])
        self.method = np.array([item["method"] for item in items])
        self.model = np.array([item.get("model", "") for item in items])
        if self.kind == "class":
            self.truth = np.array([item["truth"] for item in items])
        else:
            second = [item["models"][1] == key["better"] for item in items]
            self.sign = np.where(second, 1, -1)

    def scores(self, table: np.ndarray) -> np.ndarray:
        """Return 1 for right answers and 0 for wrong ones, or ratings for the better model."""
        if self.kind == "class":
            return np.where(np.isnan(table), np.nan, table == self.truth)
        return table * self.sign


def _row(
    scores: np.ndarray, items: _Items, chosen: np.ndarray, means: np.ndarray, level: float
) -> Bunch:
    part = scores[:, chosen]
    there = ~np.isnan(part)
    possible = (0, 1) if items.kind == "class" else (-2, -1, 0, 1, 2)
    n = int(there.sum())
    return Bunch(
        **_interval(means, level),
        n=n,
        n_raters=int(there.any(axis=1).sum()),
        n_images=len(np.unique(items.image[chosen][there.any(axis=0)])),
        shares={value: float((part == value).sum() / n) if n else np.nan for value in possible},
    )


# Resamples


class _Draws:
    """How often each rater and each image counts: first in the data, then in each resample."""

    def __init__(
        self,
        n_raters: int,
        image: np.ndarray,
        resample: Resample,
        n_resamples: int,
        random_state: int | np.random.RandomState | None,
    ):
        generator = check_random_state(random_state)
        images, self._place = np.unique(image, return_inverse=True)

        def drawn(n: int, side: str) -> np.ndarray:
            once = np.ones((1 + n_resamples, n))
            if resample in ("both", side):
                once[1:] = generator.multinomial(n, np.full(n, 1 / n), size=n_resamples)
            return once

        self._raters = drawn(n_raters, "raters")
        self._images = drawn(len(images), "images")

    def means(self, scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Return the mean score of the chosen questions, in the data and in each resample."""
        n_images = self._images.shape[1]
        at = np.eye(n_images)[self._place[chosen]]  # which image a question is about
        part = scores[:, chosen]
        there = ~np.isnan(part)

        def total(values: np.ndarray) -> np.ndarray:
            return ((self._raters @ (values @ at)) * self._images).sum(axis=1)

        counts = total(there.astype(np.float64))
        sums = total(np.where(there, part, 0.0))
        return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def _interval(means: np.ndarray, level: float) -> Bunch:
    some = means[1:][np.isfinite(means[1:])]
    tail = 50 * (1 - level)
    low, high = np.percentile(some, [tail, 100 - tail]) if len(some) else (np.nan, np.nan)
    return Bunch(mean=float(means[0]), low=float(low), high=float(high))
