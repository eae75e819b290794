"""One number, or one curve, of each image: how models and methods compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sklcam._validation import check_callable, describe
from sklcam.cam.base import check_batch_size, draw_seed
from sklcam.cam.targets import has_several
from sklcam.explain.base import AnyMethod
from sklcam.images.views import ViewSampler
from sklcam.metrics.batch import Batch, Options, Shared
from sklcam.metrics.causal import CausalCurves, deletion_auc, insertion_auc
from sklcam.metrics.evaluate import (
    check_has_probability,
    check_maps_are_single,
    check_metric_params,
    evaluate,
)
from sklcam.plotting.drawing import (
    check_looks,
    check_matplotlib,
    check_option,
    check_options,
    given_axes,
    line_styles,
    plain_legend,
    single_axes,
)
from sklcam.plotting.pictures import (
    explained_columns,
    explainers_by_name,
    named_values,
)

_KINDS = ("hist", "ecdf")
_CAUSAL = frozenset({"iauc", "dauc"})


class ConsistencyDisplay:
    """How consistent the maps of one or several models are, image by image.

    Parameters
    ----------
    values : dict of str to ndarray of shape (n_images,), in [-1, 1]
        For each model the SSIM of the view of the map and the map of the view.

    Attributes
    ----------
    values
        As above.
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    artists_ : list
        The outline of each histogram, or the line of each distribution.
    legend_ : matplotlib Legend

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", figure 2.

    Examples
    --------
    >>> from sklcam.plotting import ConsistencyDisplay
    >>> values = {"baseline": [0.4, 0.6, 0.5], "consistent": [0.7, 0.6, 0.8]}
    >>> display = ConsistencyDisplay.from_predictions(values)
    >>> [text.get_text() for text in display.legend_.get_texts()]
    ['baseline: 0.50 ± 0.08', 'consistent: 0.70 ± 0.08']
    """

    def __init__(self, *, values: Mapping[str, np.ndarray]):
        self.values = values

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        method: AnyMethod | None = None,
        views: ViewSampler | None = None,
        random_state: Any = 0,
        ax: Any = None,
        **options: Any,
    ) -> ConsistencyDisplay:
        """Measure the consistency of each image's map, and draw how it is distributed.

        Parameters
        ----------
        estimator : estimator with ``explain``, nn.Module, or dict of names to them
            Fitted. All get the same views.
        X : images
        method : str, Method or None, default=None
            None is Grad-CAM without its ReLU, as in training.
        views : ViewSampler or None, default=None
            None is the paper's.
        random_state : int, RandomState or None, default=0
        ax : matplotlib Axes or None, default=None
        **options
            Of :meth:`plot`.

        Returns
        -------
        ConsistencyDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        NotFittedError
            If an estimator has not been fitted.
        TypeError
            If there is an option that :meth:`plot` does not take.
        ValueError
            If an estimator does not explain; if images are smaller, as the network gets them, than
            SSIM's window of 11 x 11 pixels; or if the images, method, views, seed, axes or looks
            make no sense.
        """
        check_options(cls, ax, options, _KINDS)
        check_metric_params({"consistency": {"method": method, "views": views}})
        seed = draw_seed(random_state)  # all get the same views
        values = {
            name: evaluate(
                explainer,
                X,
                metrics="consistency",
                metric_params={"consistency": {"method": method, "views": views}},
                random_state=seed,
                progress=False,
            )["consistency"]
            for name, explainer in explainers_by_name(estimator, X).items()
        }
        return cls(values=values).plot(ax=ax, **options)

    @classmethod
    def from_predictions(cls, values: Any, *, ax: Any = None, **options: Any) -> ConsistencyDisplay:
        """Draw values that are there already, such as those of :func:`~sklcam.metrics.evaluate`.

        Parameters
        ----------
        values : array-like of shape (n_images,), or dict of names to them
        ax : matplotlib Axes or None, default=None
        **options
            Of :meth:`plot`.

        Returns
        -------
        ConsistencyDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If the values are not one finite number per image, or the axes or looks make no sense.
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        named = {
            name: np.asarray(of, dtype=float) for name, of in named_values(values, "model").items()
        }
        return cls(values=named).plot(ax=ax, **options)

    def plot(
        self, *, ax: Any = None, kind: Literal["hist", "ecdf"] = "hist", bins: int = 20
    ) -> ConsistencyDisplay:
        """Draw the distributions.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            None makes a new figure.
        kind : {"hist", "ecdf"}, default="hist"
            Histograms with their means, or cumulative distributions.
        bins : int, default=20
            Of the histograms, which have them in common.

        Returns
        -------
        ConsistencyDisplay
            ``self``.

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If the values are not one finite number per image, ``kind`` is not among these, ``bins``
            is no int >= 1, or ``ax`` is not one Axes.
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        from matplotlib.ticker import MaxNLocator

        check_option("kind", kind, _KINDS)
        check_looks(bins=bins)
        for name, of in self.values.items():
            if np.ndim(of) != 1 or not len(of) or not np.isfinite(of).all():
                raise ValueError(
                    f"values of {name!r} must be one finite number per image; got shape "
                    f"{np.shape(of)}."
                )
        self.figure_, self.ax_ = single_axes(ax)
        self.artists_ = []
        edges = np.histogram_bin_edges(np.concatenate(list(self.values.values())), bins=bins)
        for of, style in zip(self.values.values(), line_styles(), strict=False):
            if kind == "hist":
                counts, _ = np.histogram(of, edges)
                self.ax_.stairs(counts, edges, fill=True, alpha=0.15, color=style["color"])
                drawn = self.ax_.stairs(counts, edges, linewidth=1.8, **style)
                self.ax_.axvline(float(np.mean(of)), linewidth=1, **style)
            else:
                drawn = self.ax_.ecdf(of, linewidth=1.8, **style)
            self.artists_.append(drawn)
        self.ax_.set_xlabel("consistency of an image's map (SSIM)")
        self.ax_.set_ylabel("number of images" if kind == "hist" else "share of images")
        labels = [
            f"{name}: {np.mean(of):.2f} ± {np.std(of):.2f}" for name, of in self.values.items()
        ]
        title = "mean (line) and standard deviation" if kind == "hist" else "mean and deviation"
        self.legend_ = plain_legend(self.ax_, self.artists_, labels, title=title)
        if kind == "hist":
            self.ax_.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
            # Room for the legend above the bars.
            self.ax_.set_ylim(0, self.ax_.get_ylim()[1] * (1.15 + 0.1 * len(labels)))
        return self


class CausalCurveDisplay:
    """Insertion and deletion: the network's confidence as the map's pixels come, and as they go.

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

    def __init__(self, *, curves: Mapping[str, CausalCurves]):
        self.curves = curves

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        methods: Any = None,
        target: Any = None,
        score: Callable[[Tensor], Tensor] | None = None,
        n_steps: int = 224,
        start: Callable[[Tensor], Tensor] | None = None,
        end: Callable[[Tensor], Tensor] | None = None,
        batch_size: int | None = None,
        ax: Any = None,
        **options: Any,
    ) -> CausalCurveDisplay:
        """Follow the confidence on each image, and draw it.

        Parameters
        ----------
        estimator : estimator with ``explain``, nn.Module, or dict of names to them
            Fitted.
        X : images
        methods : str, Method, sequence of them, dict of names to them, or None, default=None
            The explanations; None is the estimator's own.
        target : None, labels or callable, default=None
            As of ``explain``, one class an image.
        score : callable or None, default=None
            As of :func:`~sklcam.metrics.evaluate`; needed for a target that is a callable.
        n_steps, start, end, batch_size
            As of :func:`~sklcam.metrics.causal_curves`.
        ax : array-like of two matplotlib axes or None, default=None
        **options
            Of :meth:`plot`.

        Returns
        -------
        CausalCurveDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        NotFittedError
            If an estimator has not been fitted.
        TypeError
            If there is an option that :meth:`plot` does not take.
        ValueError
            If an estimator does not explain; if the images, methods or target make no sense, or an
            image would have several maps; if a target without a probability comes without a score;
            or if another argument does not fit.
        """
        check_options(cls, ax, options)
        params = {"iauc": {"n_steps": n_steps, "start": start, "end": end}}
        check_metric_params(params)
        check_batch_size(batch_size)
        if score is not None:
            check_callable("score", score, "of the network's output, one number per image")
        curves = {}
        for name, (explainer, method) in explained_columns(
            explainers_by_name(estimator, X), methods
        ).items():
            chosen = explainer._method(method)
            check_maps_are_single(explainer, chosen)
            asked = Options(chosen, _CAUSAL, params, score, batch_size, seed=0)
            curves[name] = _curves(explainer, X, target, asked)
        return cls(curves=curves).plot(ax=ax, **options)

    @classmethod
    def from_predictions(cls, curves: Any, *, ax: Any = None, **options: Any) -> CausalCurveDisplay:
        """Draw curves that are there already.

        Parameters
        ----------
        curves : CausalCurves, or dict of names to them
        ax : array-like of two matplotlib axes or None, default=None
        **options
            Of :meth:`plot`.

        Returns
        -------
        CausalCurveDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If what is given is not CausalCurves, or is an empty dict, or if ``ax`` is not two axes.
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        named = named_values(curves, "map")
        for name, of in named.items():
            if not isinstance(of, CausalCurves):
                raise ValueError(f"curves of {name!r} must be CausalCurves; got {describe(of)}.")
        return cls(curves=named).plot(ax=ax, **options)

    @property
    def insertion_auc(self) -> dict[str, float]:
        """Mean area under the insertion curves."""
        return {name: insertion_auc(of).mean().item() for name, of in self.curves.items()}

    @property
    def deletion_auc(self) -> dict[str, float]:
        """Mean area under the deletion curves."""
        return {name: deletion_auc(of).mean().item() for name, of in self.curves.items()}

    def plot(self, *, ax: Any = None, band: bool = True) -> CausalCurveDisplay:
        """Draw the mean curves.

        Parameters
        ----------
        ax : array-like of two matplotlib axes or None, default=None
            None makes a new figure.
        band : bool, default=True
            Whether the middle half of the images is shaded.

        Returns
        -------
        CausalCurveDisplay
            ``self``.

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If ``ax`` is not two axes.
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        figure, axes = _pair_of_axes(ax, type(self).__name__)
        self.lines_ = np.empty((2, len(self.curves)), dtype=object)
        self.legends_ = []
        drawn = (("insertion", self.insertion_auc), ("deletion", self.deletion_auc))
        for place, lines, (kind, areas) in zip(axes, self.lines_, drawn, strict=True):
            for i, (of, style) in enumerate(zip(self.curves.values(), line_styles(), strict=False)):
                fractions = of.fractions.cpu().numpy()
                scores = getattr(of, kind).float().cpu().numpy()
                (lines[i],) = place.plot(fractions, scores.mean(axis=0), **style)
                if band and len(scores) > 1:
                    low, high = np.quantile(scores, [0.25, 0.75], axis=0)
                    place.fill_between(
                        fractions, low, high, color=style["color"], alpha=0.15, linewidth=0
                    )
            labels = [f"{name}: AUC {areas[name]:.2f}" for name in self.curves]
            self.legends_.append(plain_legend(place, list(lines), labels, above=True))
            done = "inserted" if kind == "insertion" else "deleted"
            place.set(xlim=(0, 1), ylim=(-0.02, 1.02))
            place.set_xlabel(f"share of pixels {done}, the map's highest first")
        what = "mean and middle half of the images" if band else "mean of the images"
        axes[0].set_ylabel(f"confidence ({what})")
        self.figure_, self.axes_ = figure, axes
        return self


def _pair_of_axes(ax: Any, name: str) -> tuple[Any, np.ndarray]:
    if ax is not None:
        figure, axes = given_axes(ax, (1, 2), name)
        return figure, axes.ravel()
    import matplotlib.pyplot as plt

    return plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")


def _curves(explainer: Any, X: Any, target: Any, options: Options) -> CausalCurves:
    dataset = explainer._image_dataset(X)
    target = explainer._encode_target(target, len(dataset))
    if has_several(target):
        raise ValueError("Curves are drawn of one class per image; give one label each.")
    if options.score is None:
        check_has_probability(target, sorted(_CAUSAL), encoded=True)
    shared = Shared(options, n_before=0)
    batches = [
        Batch(explainer, inputs, of_batch, {}, options, shared).curves
        for inputs, of_batch in explainer._iter_targeted(dataset, target)
    ]
    return CausalCurves(
        batches[0].fractions.cpu(),
        torch.cat([of.insertion for of in batches]).cpu(),
        torch.cat([of.deletion for of in batches]).cpu(),
    )
