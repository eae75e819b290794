"""Whether maps depend on what the network has learned, and on the class.

The network's weights are made random, layer by layer, and the same class is explained again. Maps
that hardly change show the image, not what was learned. All of this happens in a copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from sklcam._progress import tqdm
from sklcam._validation import check_count, describe, draw_seed
from sklcam.cam.base import Method
from sklcam.cam.targets import Target
from sklcam.explain.base import AnyMethod, Explainer, Methods, method_name
from sklcam.explain.checks import ExplanationCheck
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.metrics.consistency import is_constant, rank_correlation, ssim_consistency
from sklcam.metrics.plan import check_one_map
from sklcam.metrics.randomizable import Layers, Mode, Randomizable
from sklcam.metrics.summary import mean_and_interval
from sklcam.networks.inputs import Inputs

Likeness = Literal["rank_correlation", "ssim"]
LIKENESSES = get_args(Likeness)

_N_OTHERS = 5  # maps of other images that each map is compared with
_AT_A_TIME = 64
_SAME = 0.95  # if maps of different images are this much alike, nothing sets them apart


@dataclass(frozen=True, eq=False, repr=False)
class SanityCheck:
    """How similar maps stay, for each method, as the network's weights are made random.

    Made by :func:`sanity_check`. Likeness is both the rank correlation of the maps' absolute values
    and the SSIM of the maps scaled to [0, 1]. An image whose map is constant from the start has
    NaN, and is left out of all means; one whose map becomes constant has 0.

    Attributes
    ----------
    mode : {"cascading", "independent"}
    layers : list of tuple of str
        The layers that are made random at each step, from the output backwards.
    randomized : dict of {"rank_correlation", "ssim"} to dict of str to ndarray
        By method, of shape (n_images, n_steps): the likeness to the trained network's map.
    other_images : dict of {"rank_correlation", "ssim"} to dict of str to ndarray
        By method, of shape (n_images,): the likeness of the trained network's maps of different
        images. Maps that are no more alike than these have nothing in common.
    other_classes : dict of {"rank_correlation", "ssim"} to dict of str to ndarray
        By method, of shape (n_images,): the likeness of the map to that of another class, drawn at
        random. Empty if the target is not a class.
    n_vanished : dict of str to int
        By method, how many maps were constant with random weights, of ``n_images * n_steps``.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.metrics import SanityCheck
    >>> kept = {"edges": np.full((4, 2), 0.9), "gradcam": np.full((4, 2), 0.1)}
    >>> others = {"edges": np.full(4, 0.1), "gradcam": np.full(4, 0.2)}
    >>> check = SanityCheck("cascading", [("fc",), ("conv",)], {"rank_correlation": kept},
    ...                     {"rank_correlation": others}, {}, {})
    >>> check
              random weights  other image  other class
    edges               0.90         0.10              insensitive to the weights
    gradcam             0.10         0.20              sensitive to the weights
    >>> check.curves()["edges"]["mean"]
    array([0.9, 0.9])
    """

    mode: Mode
    layers: list[tuple[str, ...]]
    randomized: dict[str, dict[str, np.ndarray]]
    other_images: dict[str, dict[str, np.ndarray]]
    other_classes: dict[str, dict[str, np.ndarray]]
    n_vanished: dict[str, int] = field(default_factory=dict)

    @property
    def steps(self) -> list[str]:
        """The name of each step: the layer that it reaches, or its first and last layers."""
        if self.mode == "cascading":
            return [names[-1] for names in self.layers]
        return [" to ".join(dict.fromkeys([names[0], names[-1]])) for names in self.layers]

    @property
    def methods(self) -> list[str]:
        """The names of the methods."""
        return list(next(iter(self.randomized.values())))

    def curves(
        self,
        likeness: Likeness = "rank_correlation",
        *,
        level: float = 0.95,
        n_resamples: int = 2000,
        random_state: int | np.random.RandomState | None = 0,
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return how alike maps stay at each step: the mean over the images, with an interval.

        Parameters
        ----------
        likeness : {"rank_correlation", "ssim"}, default="rank_correlation"
        level : float, default=0.95
            The level of the bootstrap interval.
        n_resamples : int, default=2000
        random_state : int, RandomState or None, default=0

        Returns
        -------
        dict of str to dict
            By method, ``"mean"``, ``"low"`` and ``"high"``, each an ndarray of shape (n_steps,).

        Raises
        ------
        ValueError
            If there is no such likeness, or an option is out of range.
        """
        self._check(likeness)
        found = {}
        for name, values in self.randomized[likeness].items():
            mean, low, high = mean_and_interval(
                values, level=level, n_resamples=n_resamples, random_state=random_state
            )
            found[name] = {"mean": mean, "low": low, "high": high}
        return found

    def verdict(
        self, likeness: Likeness = "rank_correlation", *, level: float = 0.95
    ) -> dict[str, str]:
        r"""Say for each method whether its maps depend on the weights, and on the class.

        Let :math:`s` be the likeness to the trained network's map, averaged over the steps, and
        :math:`b` that of maps of different images. Maps that do not depend on the weights have
        :math:`s = 1`, and maps of which nothing is left have :math:`s = b`. A method is
        *insensitive* if its maps stay nearer to the first than to the second, :math:`s > (1 + b) /
        2`: more of their likeness is kept than lost. The verdict is given if the interval of the
        mean over the images lies on one side; if it covers both, it *cannot be told*. The verdict
        on classes is the same, with :math:`s` the likeness to the map of another class. If
        :math:`b` is over 0.95, there is no room between the two, and the verdict is only that the
        maps are the same for all images.

        Parameters
        ----------
        likeness : {"rank_correlation", "ssim"}, default="rank_correlation"
            SSIM is high wherever both maps are flat, and sparse maps mostly are.
        level : float, default=0.95
            The level of the bootstrap interval.

        Returns
        -------
        dict of str to str

        Raises
        ------
        ValueError
            If there is no such likeness, or the level is not between 0 and 1.
        """
        self._check(likeness)
        of_classes = self.other_classes.get(likeness, {})
        found = {}
        for name, values in self.randomized[likeness].items():
            others = self.other_images[likeness][name]
            judgement = _judged(values.mean(axis=1), others, "the weights", level)
            if name in of_classes:
                of_class = _judged(of_classes[name], others, "the class", level)
                judgement += f"; {of_class}" if of_class != judgement else ""
            found[name] = judgement
        return found

    def _check(self, likeness: object) -> None:
        if likeness not in self.randomized:
            raise ValueError(f"likeness must be one of {[*self.randomized]}; got {likeness!r}.")

    def __repr__(self) -> str:
        likeness = next(iter(self.randomized))
        columns = {
            "random weights": self.randomized[likeness],
            "other image": self.other_images[likeness],
            "other class": self.other_classes.get(likeness, {}),
        }
        width = max(map(len, self.methods))
        lines = [" " * width + "".join(f"  {column}" for column in columns)]
        for name, judgement in self.verdict().items():
            cells = [
                f"  {_mean(values[name]) if name in values else '':>{len(column)}}"
                for column, values in columns.items()
            ]
            lines.append(f"{name:{width}}{''.join(cells)}  {judgement}")
        lines += [
            f"{name}: {n} of {self.randomized[likeness][name].size} maps are constant with random "
            "weights; each counts as 0"
            for name, n in self.n_vanished.items()
            if n
        ]
        return "\n".join(lines)


def _mean(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.mean():.2f}" if finite.size else "-"


def _judged(values: np.ndarray, others: np.ndarray, what: str, level: float) -> str:
    """Say whether maps stay nearer to what they were than to maps of other images."""
    margins = values - (1 + others) / 2
    if not np.isfinite(margins).any():
        return "its maps are constant, and say nothing"
    if np.nanmean(others) > _SAME:
        return "its maps are the same for all images"
    _, low, high = mean_and_interval(margins[:, None], level=level)[:, 0]
    if low >= 0:
        return f"insensitive to {what}"
    if high < 0:
        return f"sensitive to {what}"
    return f"sensitivity to {what} cannot be told from {len(values)} images"


def sanity_check(
    estimator: AnyEstimator,
    X: Any,
    *,
    method: AnyMethod | Methods | None = None,
    target: Any = None,
    mode: Mode = "cascading",
    layers: Layers = 16,
    random_state: int | np.random.RandomState | None = 0,
    progress: bool = True,
) -> SanityCheck:
    """Make the network's weights random, layer by layer, and see whether its maps change.

    The class that is explained stays the one that the trained network predicts. A second test
    compares each map with that of another class, drawn at random.

    Parameters
    ----------
    estimator : ConsistentCAMClassifier, CAMExplainer, EmbeddingCAMExplainer or nn.Module
        Fitted, as :func:`evaluate` takes it. It is not touched: a copy is made random.
    X : images
        In any form that the estimator takes; at least two. Each image is read once.
    method : str, Method, list of them, dict of names to them, or None, default=None
        The explanations; None is the estimator's own. Several cost hardly more than one if they
        share a pass.
    target : None, labels, Target or callable, default=None
        The target, one per image: see the estimator's ``explain``. With a callable there are no
        other classes.
    mode : {"cascading", "independent"}, default="cascading"
        "cascading" makes layers random one after the other, from the output backwards, and leaves
        them random; "independent" makes only those of one step random, while all others stay
        trained.
    layers : int, None or sequence of str, default=16
        The number of steps, with layers divided evenly among them. None makes each layer a step.
        With names of modules, in any order, each of these and its contents are a step, and the rest
        of the network stays trained.
    random_state : int, RandomState or None, default=0
        Seeds the weights, the other classes and which images are compared.
    progress : bool, default=True
        Whether a bar is shown.

    Returns
    -------
    SanityCheck

    Raises
    ------
    NotFittedError
        If the estimator has not been fitted.
    ValueError
        If an argument is not valid, an image would have several maps, maps are smaller than SSIM's
        window of 11 x 11 pixels, the network cannot be copied, or a layer cannot be made random.

    Warns
    -----
    ExplanationWarning
        If maps of the trained network are blank, or NaN.

    Notes
    -----
    A layer is made random by its own ``reset_parameters``, as it was before training; this also
    resets batch normalisation's running statistics. A parameter of a layer that has none, or one
    that it leaves unchanged, is drawn from a normal distribution with its own mean and deviation.
    All random weights come from one draw: a step takes those of its layers. Layers are in the order
    in which the network uses their weights; if it uses them several times, the last use counts.
    Layers that the output does not depend on, such as an auxiliary head, are left out.

    It costs ``n_steps + 2`` explanations per image, and memory for two more copies of the network,
    one of them on the CPU, and for two maps of each image and method.

    References
    ----------
    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, sections 3 and 4. Sixt, Granz,
    Landgraf, "When Explanations Lie", ICML 2020, section 5, for the other class.

    Examples
    --------
    One method shows edges, whatever the network; the other, what the network takes for the class:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import GradCAM, Method
    >>> from sklcam.metrics import sanity_check
    >>> class Edges(Method):
    ...     uses_layers = False
    ...     def explain(self, recorded):
    ...         return [torch.gradient(recorded.images, dim=3)[0].abs().amax(1, keepdim=True)]
    >>> _ = torch.manual_seed(0)
    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
    ...                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    >>> explainer = CAMExplainer(network, target_layer="3", verbose=0).fit()
    >>> images = torch.rand(8, 3, 16, 16)
    >>> methods = {"edges": Edges(), "gradcam": GradCAM(relu=False)}
    >>> check = sanity_check(explainer, images, method=methods, progress=False)
    >>> check.steps
    ['6', '2', '0']
    >>> check.verdict()["edges"]
    'insensitive to the weights; insensitive to the class'
    """
    if mode not in get_args(Mode):
        raise ValueError(f'mode must be "cascading" or "independent"; got {mode!r}.')
    _check_layers(layers)
    seed = draw_seed(check_random_state(random_state))
    explainer, X = as_explainer(estimator, X)
    named = explainer.named_methods(method)
    named = {name or method_name(explainer.method): each for name, each in named.items()}
    opened = explainer.open(X)
    n_images = len(opened)
    if n_images < 2:
        raise ValueError("sanity_check compares maps of different images. Give at least two.")
    question = explainer.as_target(target, n_images)
    if question.several:
        raise ValueError("sanity_check explains one class per image. Give one label for each.")
    check_one_map(explainer, named.values(), "sanity_check")
    # An error if maps are too small.
    ssim_consistency(*torch.zeros(2, 1, *opened.image_size), spatial_dims=len(opened.image_size))
    comparison = _Comparison(explainer, named)
    check = ExplanationCheck()
    copied: Randomizable | None = None
    with tqdm(total=n_images, desc="sanity check", leave=False, disable=not progress) as bar:
        for batch in opened.batches():
            inputs, rows = batch.inputs, slice(batch.start, batch.stop)
            if copied is None:
                copied = Randomizable(explainer, inputs, layers, seed)
            resolved = comparison.begin(inputs, question.take(rows))
            check.add(comparison.raw_maps, n_axes=len(opened.image_size))
            other = _other_classes(explainer, resolved, range(batch.start, batch.stop), seed)
            if other is not None:
                comparison.of_classes(inputs, other)
            for _ in copied.steps(mode):
                comparison.of_random_weights(copied.explainer, inputs, resolved)
            bar.update(len(batch))
    check.warn()
    assert copied is not None
    return comparison.results(mode, copied.layers, seed)


def _check_layers(layers: object) -> None:
    if isinstance(layers, Sequence) and not isinstance(layers, str):
        if not layers or not all(isinstance(name, str) for name in layers):
            raise ValueError(f"layers must be names of modules; got {describe(layers)}.")
    elif layers is not None:
        check_count("layers, the number of steps unless it is a list of names,", layers)


def _other_classes(explainer: Explainer, target: Target, rows: range, seed: int) -> Tensor | None:
    """Draw a class other than the explained one for each image; None if targets are not classes."""
    if target.indices is None or explainer.classes_ is None or len(explainer.classes_) < 2:
        return None
    n_classes = len(explainer.classes_)
    steps = [np.random.default_rng([seed, row]).integers(1, n_classes) for row in rows]
    return (target.indices[:, 0] + torch.tensor(steps).to(target.indices)) % n_classes


class _Comparison:
    """Maps of the trained network, and how alike others are to them, batch after batch."""

    def __init__(self, explainer: Explainer, methods: Mapping[str, Method]):
        self._explainer = explainer
        self._methods = dict(methods)
        self._kept: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in methods}
        self._found: dict[str, list[list[Tensor]]] = {name: [] for name in methods}
        self._of_classes: dict[str, list[Tensor]] = {name: [] for name in methods}
        self._n_vanished = dict.fromkeys(methods, 0)

    def begin(self, inputs: Inputs, question: Target) -> Target:
        """Explain a batch by the trained network, and return the resolved target."""
        self._now, target = self._explain(self._explainer, inputs, question)
        for name, (scaled, raw) in self._now.items():
            self._kept[name].append((scaled.float().cpu(), raw.float().cpu()))
            self._found[name].append([])
        return target

    @property
    def raw_maps(self) -> Tensor:
        """The maps of the batch by all methods, one after the other."""
        return torch.cat([raw for _, raw in self._now.values()])

    def of_classes(self, inputs: Inputs, classes: Tensor) -> None:
        """Compare with the maps of other classes."""
        others, _ = self._explain(self._explainer, inputs, classes)
        for name, pair in others.items():
            self._of_classes[name].append(_likeness(self._now[name], pair)[0])

    def of_random_weights(self, explainer: Explainer, inputs: Inputs, target: Target) -> None:
        """Compare with the maps of a network some of whose weights are random."""
        others, _ = self._explain(explainer, inputs, target)
        for name, pair in others.items():
            likeness, n_vanished = _likeness(self._now[name], pair)
            self._found[name][-1].append(likeness)
            self._n_vanished[name] += n_vanished

    def _explain(
        self, explainer: Explainer, inputs: Inputs, target: Target | Tensor
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], Target]:
        """Return the maps of each method, scaled and absolute, and the resolved target."""
        methods = list(self._methods.values())
        n_methods = len(methods)
        maps, _, resolved = explainer.explain_batch(
            inputs,
            target,
            methods=methods * 2,
            normalize=[True] * n_methods + [False] * n_methods,
        )
        raw = [each.abs() for each in maps[n_methods:]]
        return dict(zip(self._methods, zip(maps, raw, strict=False), strict=True)), resolved

    def results(self, mode: Mode, layers: list[tuple[str, ...]], seed: int) -> SanityCheck:
        of_weights = {
            name: torch.cat([torch.stack(steps, dim=2) for steps in of_batches], dim=1)
            for name, of_batches in self._found.items()
        }
        of_images = {name: _of_other_images(pairs, seed) for name, pairs in self._kept.items()}
        of_classes = {name: torch.cat(of, dim=1) for name, of in self._of_classes.items() if of}
        return SanityCheck(
            mode,
            layers,
            _by_likeness(of_weights),
            _by_likeness(of_images),
            _by_likeness(of_classes) if of_classes else {},
            self._n_vanished,
        )


def _by_likeness(found: Mapping[str, Tensor]) -> dict[str, dict[str, np.ndarray]]:
    return {
        likeness: {name: values[i].numpy() for name, values in found.items()}
        for i, likeness in enumerate(LIKENESSES)
    }


def _likeness(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    """Return the likeness of pairs of maps, (2, n_images), on the host, and how many vanished."""
    (scaled, raw), (others, other_raw) = first, second
    was_constant = is_constant(raw)
    is_gone = (is_constant(other_raw) | ~other_raw.flatten(1).isfinite().all(dim=1)) & ~was_constant
    n = raw.ndim - 1  # one map per image
    values = torch.stack(
        [
            rank_correlation(raw, other_raw, spatial_dims=n),
            ssim_consistency(scaled, others, spatial_dims=n).to(raw.dtype),
        ]
    )
    values = torch.where(is_gone, 0.0, torch.where(was_constant, torch.nan, values))
    return values.double().cpu(), int(is_gone.sum())


def _of_other_images(batches: Sequence[tuple[Tensor, Tensor]], seed: int) -> Tensor:
    """Return how alike the maps of images are to those of some others, (2, n_images)."""
    scaled, raw = (torch.cat(maps) for maps in zip(*batches, strict=True))
    n_images = len(raw)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n_images))
    found = []
    for shift in range(1, min(_N_OTHERS, n_images - 1) + 1):
        partner = torch.empty_like(order)
        partner[order] = order.roll(shift)
        parts = zip(*(each.split(_AT_A_TIME) for each in (scaled, raw, partner)), strict=True)
        values = torch.cat(
            [_likeness((s, r), (scaled[others], raw[others]))[0] for s, r, others in parts], dim=1
        )
        # A constant map is not like any other, and shows nothing.
        values[:, is_constant(raw[partner])] = torch.nan
        found.append(values)
    return torch.stack(found).nanmean(dim=0)
