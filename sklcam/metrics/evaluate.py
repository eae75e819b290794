"""All metrics of an explainer in one pass over the images.

Everything is checked before any work. Then batch after batch goes through the metrics, in one
process or several, and only one value per image and metric is kept.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Generic, overload

import numpy as np
import torch
from joblib import effective_n_jobs
from sklearn.utils import check_random_state

from sklcam._callers import level_of_user
from sklcam._folders import Shard, check_shard
from sklcam._progress import tqdm
from sklcam._validation import draw_seed
from sklcam.explain.base import AnyMethod, Methods
from sklcam.explain.checks import ExplanationCheck
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.images.labels import dataset_labels
from sklcam.metrics._checks import check_asked, check_measurable
from sklcam.metrics.annotations import Annotations, PerImage, checked_boxes, is_by_class
from sklcam.metrics.groups import AnyGroups, checked_groups
from sklcam.metrics.plan import OutputScore, Params, Plan, check_n_jobs, labels_if_needed, make_plan
from sklcam.metrics.registry import Metric, get_metrics, of_all_classes, of_the_predicted_class
from sklcam.metrics.runs import (
    Observed,
    Observer,
    Reading,
    Run,
    column,
    measure,
    measure_in_processes,
    measure_to,
)
from sklcam.metrics.summary import Evaluation

AnyMetrics = str | Metric | Sequence[str | Metric]


@overload
def evaluate(
    estimator: AnyEstimator,
    X: Any,
    y: Any = ...,
    *,
    metrics: AnyMetrics = ...,
    method: AnyMethod | None = ...,
    target: Any = ...,
    boxes: PerImage = ...,
    masks: PerImage = ...,
    references: PerImage = ...,
    groups: AnyGroups = ...,
    score: OutputScore | None = ...,
    metric_params: Params | None = ...,
    batch_size: int | None = ...,
    n_jobs: int | None = ...,
    num_workers: int | None = ...,
    random_state: int | np.random.RandomState | None = ...,
    store: str | os.PathLike[str] | None = ...,
    shard: Shard | None = ...,
    progress: bool = ...,
) -> Evaluation: ...


@overload
def evaluate(
    estimator: AnyEstimator,
    X: Any,
    y: Any = ...,
    *,
    metrics: AnyMetrics = ...,
    method: Methods,
    target: Any = ...,
    boxes: PerImage = ...,
    masks: PerImage = ...,
    references: PerImage = ...,
    groups: AnyGroups = ...,
    score: OutputScore | None = ...,
    metric_params: Params | None = ...,
    batch_size: int | None = ...,
    n_jobs: int | None = ...,
    num_workers: int | None = ...,
    random_state: int | np.random.RandomState | None = ...,
    store: str | os.PathLike[str] | None = ...,
    shard: Shard | None = ...,
    progress: bool = ...,
) -> dict[str, Evaluation]: ...


def evaluate(
    estimator: AnyEstimator,
    X: Any,
    y: Any = None,
    *,
    metrics: AnyMetrics = ("adcc", "iauc", "dauc", "consistency"),
    method: AnyMethod | Methods | None = None,
    target: Any = None,
    boxes: PerImage = None,
    masks: PerImage = None,
    references: PerImage = None,
    groups: AnyGroups = None,
    score: OutputScore | None = None,
    metric_params: Params | None = None,
    batch_size: int | None = None,
    n_jobs: int | None = None,
    num_workers: int | None = None,
    random_state: int | np.random.RandomState | None = 0,
    store: str | os.PathLike[str] | None = None,
    shard: Shard | None = None,
    progress: bool = True,
) -> Evaluation | dict[str, Evaluation]:
    """Measure an explainer on X, in one pass over the images.

    Parameters
    ----------
    estimator : ConsistentCAMClassifier, CAMExplainer, EmbeddingCAMExplainer or nn.Module
        Fitted. A module is explained by a :class:`~sklcam.CAMExplainer` with its defaults. It may
        be inside a search, a ``FrozenEstimator`` or a ``Pipeline``; in a pipeline, the last step
        explains the output of the earlier ones, and boxes and masks are in the pixels of that
        output.
    X : images
        In any form that the estimator takes. Each image is read once.
    y : array-like of shape (n_images,) or (n_images, n_classes), label sets, or None, default=None
        True labels, for ``"accuracy"``. For several labels per image, a table of 0 and 1, or a set
        of labels for each. None takes those of X, if it is a data set with labels.
    metrics : str, Metric or sequence of them
        Names of registered metrics, see :func:`available`, or metrics of your own, see
        :class:`Metric`. ``"adcc"`` brings its three terms along.
    method : str, Method, list of them, dict of names to them, or None, default=None
        The explanation; None is the estimator's own. Several methods share what they can: each
        image is read once, and one forward pass makes all of their maps.
    target : None, labels, Target or callable, default=None
        The class to explain, or another target, one per image: see the estimator's ``explain``.
        ``"localization_accuracy"`` is GT-known localisation with ``target=y``. With None, the
        predicted class, and ``y``, it is top-1 localisation: the class must be right, too; with
        several labels per image, the explained one must be among them.
    boxes : sequence of array-like of shape (n_boxes, 4) or None, default=None
        The objects of each image, ``(x1, y1, x2, y2)`` in pixels of the image itself. They belong
        to one class, the image's label; for objects of several classes, give a mapping of labels to
        their boxes; those of the explained class are used.
    masks : sequence of array-like of shape (height, width) or None, default=None
        The objects as masks of the image's own size: bool, integers that are 0 outside, or shares
        in [0, 1]; or mappings of labels to masks. They take precedence over boxes, except in
        metrics of boxes.
    references : sequence of array-like of shape (height, width) or None, default=None
        A map for each image, for ``"reference_correlation"``: where people look, or a mask; for
        volumes (depth, height, width). It may have any size that covers the image, in its
        proportions or as a square or a cube. Your own sequence may read each from its file on
        request.
    groups : array-like of shape (n_images,), mapping of str to these, or None, default=None
        The group of each image, such as the camera it was taken with; or several groupings, by
        name. :meth:`Evaluation.by_group` has each metric by group, and the largest gaps.
    score : callable or None, default=None
        Turns the network's own output into one score in [0, 1] per image. The metrics of confidence
        need it if the target is not a class, and for a regression.
    metric_params : mapping of str to mapping, or None
        Options by metric, such as ``{"iauc": {"n_steps": 56, "relu": False}}``: ``n_steps``,
        ``start`` and ``end`` of :func:`causal_curves`, and ``relu`` of their maps; ``noise`` and
        ``percentiles`` of :func:`road`; ``tolerance`` of :func:`pointing_game`; ``threshold`` of
        :func:`box_from_map` and ``iou_threshold`` of :func:`localization_accuracy`; ``method`` and
        ``views`` of ``"consistency"``; those of :func:`cose`; ``occlusion`` of
        ``"rank_correlation"``; ``grid`` of ``"reference_correlation"``. The ``threshold`` of
        ``"pointing_game_reject"`` has no default: see :func:`rejection_threshold`. ``"iauc"`` and
        ``"dauc"`` share their curves: an option given to one of them holds for both. ``start`` and
        ``end`` are functions of a batch of images.
    batch_size : int or None, default=None
        The largest number of changed images to run at a time. For 224 x 224 pixels, None is 10 on a
        CPU, whose caches hold no more, and 83 elsewhere; for smaller images it is more.
    n_jobs : int or None, default=None
        Processes that share the images, as joblib counts them; the numbers are the same. This pays
        off on many cores and for many images: each process gets a copy of the network.
    num_workers : int or None, default=None
        How many processes read, decode and resize images ahead, for each of these; None is as many
        as the explainer has.
    random_state : int, RandomState or None, default=0
        Seeds the views and the noise of ROAD.
    store : str, path or None, default=None
        A folder that keeps the values of each batch. If the call is killed at any time, the same
        call resumes at the first missing batch and ends with the same numbers. It is an error if
        anything that the values depend on has changed.
    shard : (index, count) or None, default=None
        Which of several processes with a shared ``store`` this is, such as ``(0, 8)``. Each
        measures its share, waits for the others, and returns the values of all images.
    progress : bool, default=True
        Whether a bar is shown.

    Returns
    -------
    Evaluation
        A value for each image under the metric's name, and :meth:`Evaluation.summary`, also by
        class. For several methods a dict of these, by name.

    Raises
    ------
    NotFittedError
        If the estimator has not been fitted.
    ValueError
        If there is no such metric or option, or something that it needs is missing. This is raised
        before any work. It is also raised if the ``store`` was begun with other images, weights or
        settings; the message names them.

    Warns
    -----
    ExplanationWarning
        If maps are blank, or maps or values are NaN; it says how many, and the usual reasons. An
        image with NaN has the value NaN, and so has the mean.
    UserWarning
        If maps were constant, each of which counts as 0 in ``"consistency"``.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import evaluate
    >>> from sklcam.networks import build_model
    >>> network = build_model("resnet18", n_classes=5)
    >>> images = torch.randn(3, 3, 64, 64)
    >>> result = evaluate(network, images, metrics=("adcc", "sparsity"), method="fakecam")
    >>> [f"{value:.4f}" for value in result["complexity"]]
    ['0.9998', '0.9998', '0.9998']
    """
    check_n_jobs(n_jobs)
    check_shard(shard)
    several = isinstance(method, Mapping | list | tuple)
    if shard is not None and store is None:
        raise ValueError("shard= is for processes that share a folder. Give its path as store=.")
    evaluator: Evaluator[None] = Evaluator(
        estimator,
        X,
        y,
        metrics=metrics,
        method=method,
        target=target,
        boxes=boxes,
        masks=masks,
        references=references,
        groups=groups,
        score=score,
        metric_params=metric_params,
        batch_size=batch_size,
        random_state=random_state,
        num_workers=num_workers,
    )
    if store is not None:
        found = evaluator.run_to(store, shard=shard, n_jobs=n_jobs, progress=progress)
        return found if several else next(iter(found.values()))
    if several:
        return evaluator.run_each(n_jobs=n_jobs, progress=progress)[0]
    return evaluator.run(n_jobs=n_jobs, progress=progress)[0]


class Evaluator(Generic[Observed]):
    """An evaluation that has been checked and is ready to run; X is opened.

    :func:`evaluate` is the short form. An evaluator can also show each batch to an observer, with
    its images, maps, predictions and values.

    Parameters
    ----------
    estimator, X, y and all options of an evaluation
        See :func:`evaluate`.
    needs : sequence of str, default=()
        Quantities that the observer needs besides those of the metrics: see :class:`Metric`.
    originals : bool, default=False
        Whether the batches bring the images at their own sizes.

    Attributes
    ----------
    explainer : Explainer
    opened : OpenedImages
        X; its length is the number of images.
    labels : ndarray of shape (n_images,) or (n_images, n_classes), or None
        The true labels, if there are any, in the form of predictions.
    metrics : dict of str to Metric
        The metrics whose values are collected, by name.
    plans : dict of str to Plan
        A plan for each method.

    Raises
    ------
    NotFittedError
        If the estimator has not been fitted.
    ValueError
        If an argument is not valid; see :func:`evaluate`.

    Examples
    --------
    The brightest map of all, found while the metric is measured:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.metrics import Evaluator
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", batch_size=2, verbose=0).fit()
    >>> images = torch.arange(1, 4.0)[:, None, None, None] * torch.eye(8)
    >>> evaluator = Evaluator(explainer, images, metrics="sparsity", needs=["raw_maps"])
    >>> result, peaks = evaluator.run(observe=lambda batch: batch["raw_maps"].amax().item())
    >>> result["sparsity"].round(3), [round(peak, 3) for peak in peaks]
    (array([0.875, 0.875, 0.875]), [0.031, 0.047])
    """

    def __init__(
        self,
        estimator: AnyEstimator,
        X: Any,
        y: Any = None,
        *,
        metrics: AnyMetrics = ("adcc", "iauc", "dauc", "consistency"),
        method: AnyMethod | Methods | None = None,
        target: Any = None,
        boxes: PerImage = None,
        masks: PerImage = None,
        references: PerImage = None,
        groups: AnyGroups = None,
        score: OutputScore | None = None,
        metric_params: Params | None = None,
        batch_size: int | None = None,
        random_state: int | np.random.RandomState | None = 0,
        needs: Sequence[str] = (),
        originals: bool = False,
        num_workers: int | None = None,
    ):
        # First what can be checked without the estimator: fitting one around a network takes a
        # pass.
        self.metrics = get_metrics(metrics)
        if target is None:
            has_labels = y is not None or dataset_labels(X) is not None
            self.metrics = {
                name: of_the_predicted_class(metric, has_labels=has_labels)
                for name, metric in self.metrics.items()
            }
        if y is None and (is_by_class(boxes) or is_by_class(masks)):
            self.metrics = {name: of_all_classes(metric) for name, metric in self.metrics.items()}
        check_asked(
            self.metrics,
            X,
            y,
            Annotations(None, boxes, masks, references),
            target=target,
            score=score,
            metric_params=metric_params,
            batch_size=batch_size,
        )
        self.explainer, images = as_explainer(estimator, X, y)
        self.labels = labels_if_needed(self.explainer, X, y, self.metrics)
        X = images
        # By way of a RandomState, so that the views of a seed stay those of the published figures.
        seed = draw_seed(check_random_state(random_state))
        self.plans = {
            name: make_plan(
                self.metrics,
                metric_params,
                method=each,
                needs=needs,
                score=score,
                batch_size=batch_size,
                seed=seed,
            )
            for name, each in self.explainer.named_methods(method).items()
        }
        reading = Reading(originals, num_workers)
        self.opened = self.explainer.open(X, **asdict(reading))
        self._question = self.explainer.as_target(target, len(self.opened))
        given = Annotations(self.labels, boxes, masks, references)
        check_measurable(
            self.explainer,
            self.opened,
            self._question,
            self.plans,
            self.metrics,
            given,
            has_score=score is not None,
        )
        self._groups = checked_groups(groups, len(self.opened))
        self._annotations = replace(given, boxes=checked_boxes(boxes, self.explainer.classes_))
        self._X, self._reading, self._target = X, reading, target

    def run(
        self,
        *,
        observe: Observer[Observed] | None = None,
        n_jobs: int | None = None,
        progress: bool = True,
    ) -> tuple[Evaluation, list[Observed]]:
        """Run the evaluation.

        Parameters
        ----------
        observe : callable or None, default=None
            Called with each :class:`Measurement`, once its metrics are computed; with several
            processes it runs in one of them, so it and its results must pickle.
        n_jobs, progress
            See :func:`evaluate`.

        Returns
        -------
        evaluation : Evaluation
        observed : list
            What the observer returned, in the order of the images.
        """
        plan = self._only_plan()
        values, observed = self._values(observe, n_jobs, progress)
        return self._evaluation(plan, values), observed

    def run_each(
        self,
        *,
        observe: Observer[Observed] | None = None,
        n_jobs: int | None = None,
        progress: bool = True,
    ) -> tuple[dict[str, Evaluation], dict[str, list[Observed]]]:
        """Run the evaluation of several methods; parameters are those of :meth:`run`.

        Returns
        -------
        evaluations : dict of str to Evaluation
        observed : dict of str to list
            What the observer returned, for each method.
        """
        values, observed = self._values(observe, n_jobs, progress)
        n_plans = len(self.plans)
        of_each = {name: observed[i::n_plans] for i, name in enumerate(self.plans)}
        return self._evaluations(values), of_each

    def _only_plan(self) -> Plan:
        if len(self.plans) > 1:
            raise ValueError(
                f"run measures one method; got several: {', '.join(self.plans)}. Call run_each."
            )
        return next(iter(self.plans.values()))

    def _values(
        self, observe: Observer[Observed] | None, n_jobs: int | None, progress: bool
    ) -> tuple[dict[str, np.ndarray], list[Observed]]:
        check_n_jobs(n_jobs)
        n_images, run = len(self.opened), self._run(observe)
        with tqdm(total=n_images, desc="evaluate", leave=False, disable=not progress) as bar:
            if effective_n_jobs(n_jobs) > 1:
                parts = list(measure_in_processes(run, n_images, n_jobs, bar))
            else:
                parts = [measure(run, bar)]
        values = {name: np.concatenate([part[name] for part, _ in parts]) for name in run.columns}
        return values, [seen for _, observed in parts for seen in observed]

    def run_to(
        self,
        store: str | os.PathLike[str],
        *,
        shard: Shard | None = None,
        n_jobs: int | None = None,
        progress: bool = True,
    ) -> dict[str, Evaluation]:
        """Run the evaluation, and keep its values in a folder; see :func:`evaluate`.

        Returns
        -------
        dict of str to Evaluation
            By method.
        """
        check_n_jobs(n_jobs)
        check_shard(shard)
        run: Run[Any] = self._run(None)
        values = measure_to(run, store, self._target, n_jobs=n_jobs, shard=shard, progress=progress)
        return self._evaluations(values)

    def _run(self, observe: Observer[Observed] | None) -> Run[Observed]:
        return Run(
            self.explainer,
            self._X,
            self.opened,
            self._question,
            self._annotations,
            [*self.plans.values()],
            self._reading,
            observe,
        )

    def _evaluations(self, values: dict[str, np.ndarray]) -> dict[str, Evaluation]:
        """Return the values of each method as users get them."""
        found, n_plans = {}, len(self.plans)
        for i, (name, plan) in enumerate(self.plans.items()):
            of_plan = {each: values[column(i, each)] for each in plan.collected}
            what = f"maps by {name}" if n_plans > 1 else "maps"
            found[name] = self._evaluation(plan, of_plan, what)
        return found

    def _evaluation(
        self, plan: Plan, values: dict[str, np.ndarray], what: str = "maps"
    ) -> Evaluation:
        """Return the values as users get them, and warn about those that say nothing."""
        n_constant = int(values.pop("constant_views", np.zeros(1)).sum())
        if n_constant:
            warnings.warn(
                f"{n_constant} of {len(self.opened)} images have a constant map, their own or "
                "their view's; each counts as 0.",
                stacklevel=level_of_user(),
            )
        check = ExplanationCheck()
        if "map_peaks" in values:
            # Constant maps of views have been counted.
            blank = set(plan.explained) != {"view_maps"}
            check.add(torch.from_numpy(values.pop("map_peaks"))[:, None, None], what, blank=blank)
        numbers = [values[name] for name, of in self.metrics.items() if not of.may_be_undefined]
        if numbers:
            table = torch.from_numpy(np.column_stack(numbers))
            check.add(table, "images' values", n_axes=1, blank=False)
        check.warn()
        meanings = {name: metric.meaning for name, metric in self.metrics.items()}
        return Evaluation(meanings, self.labels, self._groups, **values)
