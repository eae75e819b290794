"""Sanity checks: how alike maps stay while the network's weights are made random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sklcam._validation import describe
from sklcam.explain.nested import AnyEstimator
from sklcam.metrics import SanityCheck, sanity_check
from sklcam.metrics.randomizable import Layers, Mode
from sklcam.metrics.sanity import Likeness
from sklcam.plotting import _drawing as draw
from sklcam.plotting._display import AnyAxes, Display, check_option
from sklcam.plotting._explained import AnyMethods

_MOST_TICKS = 24


@dataclass(kw_only=True, eq=False, repr=False)
class SanityCheckDisplay(Display):
    """Sanity check: a curve for each method, as layers of the network are made random.

    Dotted lines are the likeness of maps of different images, by the same method. A method whose
    curve stays over the middle between its dotted line and 1 does not depend on the weights.

    Parameters
    ----------
    check : SanityCheck

    Attributes
    ----------
    check
        As above.
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    lines_ : list of Line2D
        A curve for each method.
    other_lines_ : list of Line2D
        The likeness of different images, for each method.
    legend_ : matplotlib Legend

    References
    ----------
    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, figure 3.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.metrics import SanityCheck
    >>> from sklcam.plotting import SanityCheckDisplay
    >>> kept, others = {"edges": np.full((4, 2), 0.9)}, {"edges": np.full(4, 0.1)}
    >>> check = SanityCheck("cascading", [("fc",), ("conv",)], {"rank_correlation": kept},
    ...                     {"rank_correlation": others}, {}, {})
    >>> display = SanityCheckDisplay.from_predictions(check)
    >>> display.legend_.get_texts()[0].get_text()
    'edges: insensitive to the weights'
    """

    check: SanityCheck

    @classmethod
    def from_estimator(
        cls,
        estimator: AnyEstimator,
        X: Any,
        *,
        methods: AnyMethods = None,
        target: Any = None,
        mode: Mode = "cascading",
        layers: Layers = 16,
        random_state: int | np.random.RandomState | None = 0,
        **options: Any,
    ) -> SanityCheckDisplay:
        """Make the weights random, layer by layer, and draw how alike maps stay.

        Parameters
        ----------
        estimator : estimator with ``explain``, or nn.Module
            Fitted. Its network stays as it is.
        X : images
        methods : str, Method, list of them, dict of names to them, or None, default=None
            The explanations; None is the estimator's own.
        target : None, labels or callable, default=None
            See ``explain``; one class per image.
        mode, layers, random_state
            See :func:`~sklcam.metrics.sanity_check`.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        SanityCheckDisplay
        """
        cls._check(**options)
        check = sanity_check(
            estimator,
            X,
            method=methods,
            target=target,
            mode=mode,
            layers=layers,
            random_state=random_state,
            progress=False,
        )
        return cls(check=check).plot(**options)

    @classmethod
    def from_predictions(cls, check: SanityCheck, **options: Any) -> SanityCheckDisplay:
        """Draw a sanity check that you already have.

        Parameters
        ----------
        check : SanityCheck
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        SanityCheckDisplay

        Raises
        ------
        ValueError
            If it is not a SanityCheck.
        """
        cls._check(**options)
        if not isinstance(check, SanityCheck):
            raise ValueError(f"check must be a SanityCheck; got {describe(check)}.")
        return cls(check=check).plot(**options)

    def plot(
        self, *, ax: AnyAxes = None, likeness: Likeness = "rank_correlation", band: bool = True
    ) -> SanityCheckDisplay:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib axes or None, default=None
            None makes a new figure.
        likeness : {"rank_correlation", "ssim"}, default="rank_correlation"
        band : bool, default=True
            Whether the 95 % interval of each mean is shaded.

        Returns
        -------
        SanityCheckDisplay
            ``self``.
        """
        self._check(ax=ax)
        check_option("likeness", likeness, [*self.check.randomized])
        n_methods = len(self.check.methods)
        # Room for the names of layers below, and for a line of the legend for each method above.
        place = self._take_axes(ax, 7.5, 4.8 + 0.25 * n_methods)
        n_steps = len(self.check.steps)
        is_cascade = self.check.mode == "cascading"
        # A cascade begins with the trained network, to whose maps its own are alike.
        at = np.arange(n_steps + is_cascade)
        verdicts = self.check.verdict(likeness)
        self.lines_, self.other_lines_, labels = [], [], []
        curves = self.check.curves(likeness)
        for (name, curve), style in zip(curves.items(), draw.styles(), strict=False):
            mean, low, high = (
                np.concatenate([np.ones(int(is_cascade)), curve[part]])
                for part in ("mean", "low", "high")
            )
            (line,) = place.plot(at, mean, **style)
            if band:
                place.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)
            others = self.check.other_images[likeness][name]
            level = others[np.isfinite(others)].mean() if np.isfinite(others).any() else np.nan
            look = {"color": style["color"], "linestyle": ":", "linewidth": 0.9}
            self.other_lines_.append(place.axhline(level, **look))
            self.lines_.append(line)
            labels.append(f"{name}: {verdicts[name]}")
        names = ["trained"] * is_cascade + [step or "the network" for step in self.check.steps]
        every = -(-len(names) // _MOST_TICKS)
        place.set_xticks(at[::every], names[::every], rotation=45, ha="right", fontsize=8)
        how = "down to" if is_cascade else "alone"
        place.set_xlabel(f"layers made random, {how}")
        shown = "SSIM" if likeness == "ssim" else "rank correlation"
        place.set(ylim=(min(-0.05, place.get_ylim()[0]), 1.02))
        place.set_ylabel(f"{shown}\nwith the trained network's maps")
        look = draw.ABOVE | {"ncols": 1}
        self.legend_ = draw.legend(place, self.lines_, labels, characters=80, **look)
        return self
