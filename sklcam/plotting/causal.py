"""Insertion and deletion: how much the network needs what the map shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklcam._validation import describe
from sklcam.metrics import CausalCurves, Evaluator, Measurement, deletion_auc, insertion_auc
from sklcam.plotting import _drawing as draw
from sklcam.plotting._display import AnyAxes, Display
from sklcam.plotting._explained import (
    AnyEstimators,
    AnyMethods,
    column_name,
    explainers_by_name,
    named_values,
)


@dataclass(kw_only=True, eq=False, repr=False)
class CausalCurveDisplay(Display):
    """The network's confidence as the map's pixels are inserted, and as they are deleted.

    Parameters
    ----------
    curves : dict of str to CausalCurves
        For each method or model.

    Attributes
    ----------
    curves
        As above.
    insertion_auc, deletion_auc : dict of str to float
        Means over the images.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes, of shape (2,)
        Insertion and deletion.
    lines_ : ndarray of Line2D, of shape (2, n_curves)
    legends_ : list of two matplotlib Legend

    References
    ----------
    Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models",
    BMVC 2018.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import CausalCurves
    >>> from sklcam.plotting import CausalCurveDisplay
    >>> rising = torch.tensor([[0.0, 0.5, 1.0]])
    >>> curves = CausalCurves(torch.tensor([0.0, 0.5, 1.0]), rising, rising.flip(1))
    >>> display = CausalCurveDisplay.from_predictions({"gradcam": curves})
    >>> display.legends_[0].get_texts()[0].get_text()
    'gradcam: AUC 0.50'
    """

    curves: Mapping[str, CausalCurves]

    @classmethod
    def from_estimator(
        cls,
        estimator: AnyEstimators,
        X: Any,
        *,
        methods: AnyMethods = None,
        target: Any = None,
        score: Callable[[Tensor], Tensor] | None = None,
        n_steps: int = 56,
        start: Callable[[Tensor], Tensor] | None = None,
        end: Callable[[Tensor], Tensor] | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> CausalCurveDisplay:
        """Follow the confidence on each image, and draw it.

        Parameters
        ----------
        estimator : estimator with ``explain``, nn.Module, or dict of names to them
            Fitted.
        X : images
        methods : str, Method, list of them, dict of names to them, or None, default=None
            The explanations; None is the estimator's own.
        target : None, labels or callable, default=None
            See ``explain``; one class per image.
        score : callable or None, default=None
            See :func:`~sklcam.metrics.evaluate`; needed for a target that is a callable.
        n_steps, start, end, batch_size
            See :func:`~sklcam.metrics.causal_curves`.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        CausalCurveDisplay

        Raises
        ------
        ValueError
            If an image would have several maps, or if a target has no probability and there is no
            ``score``.
        """
        cls._check(**options)
        params = {"iauc": {"n_steps": n_steps, "start": start, "end": end}}
        explainers = explainers_by_name(estimator, X)
        evaluators: dict[str, Evaluator[CausalCurves]] = {
            name: Evaluator(
                explainer,
                images,
                metrics=("iauc", "dauc"),
                method=methods,
                target=target,
                score=score,
                metric_params=params,
                batch_size=batch_size,
            )
            for name, (explainer, images) in explainers.items()
        }
        curves: dict[str, CausalCurves] = {}
        for name, evaluator in evaluators.items():
            _, seen = evaluator.run_each(observe=_see_curves, progress=False)
            lengths = {"n_models": len(explainers), "n_methods": len(seen)}
            for of_method, of_batches in seen.items():
                column = column_name(name, evaluator.explainer, of_method, **lengths)
                curves[column] = _joined(of_batches)
        return cls(curves=curves).plot(**options)

    @classmethod
    def from_predictions(
        cls, curves: CausalCurves | Mapping[str, CausalCurves], **options: Any
    ) -> CausalCurveDisplay:
        """Draw curves that you already have.

        Parameters
        ----------
        curves : CausalCurves, or dict of names to them
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        CausalCurveDisplay

        Raises
        ------
        ValueError
            If there are no CausalCurves.
        """
        cls._check(**options)
        named = named_values(curves, "map")
        for name, given in named.items():
            if not isinstance(given, CausalCurves):
                raise ValueError(f"curves of {name!r} must be CausalCurves; got {describe(given)}.")
        return cls(curves=named).plot(**options)

    @property
    def insertion_auc(self) -> dict[str, float]:
        """Mean area under the insertion curves."""
        return {name: insertion_auc(curves).mean().item() for name, curves in self.curves.items()}

    @property
    def deletion_auc(self) -> dict[str, float]:
        """Mean area under the deletion curves."""
        return {name: deletion_auc(curves).mean().item() for name, curves in self.curves.items()}

    def plot(self, *, ax: AnyAxes = None, band: bool = True) -> CausalCurveDisplay:
        """Draw the mean curves.

        Parameters
        ----------
        ax : array-like of two matplotlib axes or None, default=None
            None makes a new figure.
        band : bool, default=True
            Whether to show the middle half of the images: as a band for one or two curves, and as
            bars at a few places for more, as bands would cover each other.

        Returns
        -------
        CausalCurveDisplay
            ``self``.
        """
        self._check(ax=ax)
        if ax is None:
            import matplotlib.pyplot as plt

            layout: dict[str, Any] = {"sharey": True, "layout": "constrained"}
            self.figure_, self.axes_ = plt.subplots(1, 2, figsize=(10, 4.2), **layout)
        else:
            self._take_given(ax, (1, 2))
            self.axes_ = self.axes_[0]
        self.lines_ = np.empty((2, len(self.curves)), dtype=object)
        self.legends_ = []
        kinds = ("insertion", self.insertion_auc), ("deletion", self.deletion_auc)
        for place, lines, (kind, areas) in zip(self.axes_, self.lines_, kinds, strict=True):
            for i, (curves, style) in enumerate(
                zip(self.curves.values(), draw.styles(), strict=False)
            ):
                fractions = curves.fractions.cpu().numpy()
                scores = getattr(curves, kind).float().cpu().numpy()
                (lines[i],) = place.plot(fractions, scores.mean(axis=0), linewidth=2, **style)
                if band and len(scores) > 1:
                    spread = np.quantile(scores, [0.25, 0.75], axis=0)
                    if len(self.curves) < 3:
                        shade = {"color": style["color"], "alpha": 0.12, "linewidth": 0}
                        place.fill_between(fractions, *spread, **shade)
                    else:
                        at = _staggered(len(fractions), i, len(self.curves))
                        bars = {"colors": style["color"], "linewidth": 1.2, "alpha": 0.8}
                        place.vlines(fractions[at], *spread[:, at], **bars)
            labels = [f"{name}: AUC {areas[name]:.2f}" for name in self.curves]
            self.legends_.append(draw.legend(place, list(lines), labels, **draw.ABOVE))
            done = "inserted" if kind == "insertion" else "deleted"
            place.set(xlim=(0, 1), ylim=(-0.02, 1.02))
            place.set_xlabel(f"share of pixels {done}, the map's highest first")
        averaged = "mean and middle half of the images" if band else "mean of the images"
        self.axes_[0].set_ylabel(f"confidence ({averaged})")
        return self


def _staggered(n_places: int, i: int, n_curves: int, n_bars: int = 5) -> np.ndarray:
    """Return some places along a curve, beside those of the other curves."""
    share = (np.arange(n_bars) + (i + 0.5) / n_curves) / n_bars
    places: np.ndarray = np.unique(np.round(share * (n_places - 1)).astype(int))
    return places


def _see_curves(measurement: Measurement) -> CausalCurves:
    inserted, deleted = measurement["insertion_curve"], measurement["deletion_curve"]
    return CausalCurves(inserted.fractions.cpu(), inserted.insertion.cpu(), deleted.deletion.cpu())


def _joined(batches: Sequence[CausalCurves]) -> CausalCurves:
    fractions, insertion, deletion = zip(*batches, strict=True)
    return CausalCurves(fractions[0], torch.cat(insertion), torch.cat(deletion))
