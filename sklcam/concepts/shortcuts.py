"""Shortcuts: features that many images of a class share, and by which a network decides.

The maps of a class are clustered. If many are alike, and unlike all others, the network may look at
a watermark, a border or the ground. Covering the region shows how much it depends on that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from sklearn.utils import check_random_state
from torch import Tensor

from sklcam._validation import check_count, check_number, describe
from sklcam.cam import upsample
from sklcam.concepts.namer import open_pictures
from sklcam.explain import Explainer
from sklcam.explain.base import AnyMethod
from sklcam.explain.nested import AnyEstimator
from sklcam.explain.opened import OpenedImages
from sklcam.images.labels import encode_labels
from sklcam.metrics import blur, impute

Cover = Literal["road", "blur", "mean"]
RandomState = int | np.random.RandomState | None

_STRUCTURE = 0.25  # a mean silhouette under which there are no clusters: Kaufman, Rousseeuw 1990
_ALIKE = 0.1  # a mean distance, 1 - cos, of two maps under which a class is one cluster
_SILHOUETTES = 1000  # images whose silhouettes are computed at most
_SEPARATION, _LIKENESS, _DROP = 0.5, 0.6, 0.2  # the least of a strong cluster


@dataclass(frozen=True, eq=False)
class Shortcut:
    """A cluster of a class's maps, and how much the class depends on what they show.

    Made by :func:`find_shortcuts`.

    Parameters
    ----------
    label : label
        The class.
    rows : ndarray of shape (size,), int64
        The images of the cluster, the most typical first.
    share : float in (0, 1]
        The share of the class's images that are in the cluster.
    map : ndarray of shape (u, v), float32 in [0, 1]
        The mean of the cluster's maps, at the layer's grid.
    region : ndarray of shape (height, width), bool
        The pixels that were covered, at the network's input size.
    separation : float in [-1, 1]
        How far its maps lie from all others: (b - a) / max(a, b), where a is the mean distance
        between two of its maps, and b between one of its maps and one of the others. At 1, its maps
        are alike, and nothing like the others.
    likeness : float in [-1, 1]
        How alike the pixels of the region are: the mean cosine between two of the cluster's images,
        after subtracting the mean of all images. At 1, they are the same in each image; objects
        seldom reach 0.5.
    drop : float in [-1, 1]
        How much the mean probability of the class falls if the region is covered.
    accuracy_drop : float in [-1, 1]
        How much the accuracy falls if the region is covered.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.concepts import Shortcut
    >>> found = Shortcut("horse", np.arange(9), 0.3, np.eye(2), np.eye(4) > 0, 0.8, 0.9, 0.5, 0.25)
    >>> round(found.strength, 2), found.is_strong
    (0.36, True)
    """

    label: Any
    rows: np.ndarray
    share: float
    map: np.ndarray
    region: np.ndarray
    separation: float
    likeness: float
    drop: float
    accuracy_drop: float

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def strength(self) -> float:
        """Separation times likeness times drop, each at least 0, by which clusters are ranked."""
        return max(self.separation, 0.0) * max(self.likeness, 0.0) * max(self.drop, 0.0)

    @property
    def is_strong(self) -> bool:
        """Whether separation is at least 0.5, likeness 0.6, and drop 0.2."""
        is_alike = self.separation >= _SEPARATION and self.likeness >= _LIKENESS
        return is_alike and self.drop >= _DROP


@dataclass(frozen=True, eq=False)
class Shortcuts(Sequence[Any]):
    """Clusters of the maps of each class, the strongest first.

    Made by :func:`find_shortcuts`; ``print`` writes a table.

    Parameters
    ----------
    clusters : list of Shortcut
    n_blank : int, default=0
        The number of images whose maps are blank; they are in no cluster.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.concepts import Shortcut, Shortcuts
    >>> one = Shortcut("horse", np.arange(9), 0.3, np.eye(2), np.eye(4) > 0, 0.8, 0.9, 0.5, 0.25)
    >>> print(Shortcuts([one]))
    class     images  share  separation  likeness   drop  of accuracy
    horse          9   0.30        0.80      0.90   0.50         0.25  strong
    """

    clusters: list[Shortcut]
    n_blank: int = 0

    def __len__(self) -> int:
        return len(self.clusters)

    def __getitem__(self, i: Any) -> Any:
        return self.clusters[i]

    @property
    def strong(self) -> list[Shortcut]:
        """The clusters that are strong, the strongest first."""
        return [cluster for cluster in self.clusters if cluster.is_strong]

    def __str__(self) -> str:
        if not self.clusters:
            return "No cluster has as many images as min_size."
        width = max(8, *(len(str(each.label)) for each in self.clusters), 0)
        lines = [f"{'class':{width}}  images  share  separation  likeness   drop  of accuracy"]
        for each in self.clusters:
            line = (
                f"{each.label!s:{width}}  {len(each):6}  {each.share:5.2f}  "
                f"{each.separation:10.2f}  {each.likeness:8.2f}  {each.drop:5.2f}  "
                f"{each.accuracy_drop:11.2f}"
            )
            lines.append(line + "  strong" * each.is_strong)
        return "\n".join(lines)


def find_shortcuts(
    estimator: AnyEstimator,
    X: Any,
    y: Any = None,
    *,
    method: AnyMethod | None = "gradcam",
    clusterer: Any = None,
    max_clusters: int = 6,
    min_size: int = 10,
    hot: float = 0.5,
    cover: Cover = "road",
    random_state: RandomState = None,
) -> Shortcuts:
    """Cluster the maps of each class, and rank the clusters by how much of a shortcut they are.

    Each image is explained for its own label. The maps of a class, at the layer's grid and of
    length 1, are clustered; if there is no structure, all of them are one cluster. A cluster is far
    from the rest if its maps are like one another, and unlike the maps of all other images, of its
    class and of others. This only says where the network looks: objects on the left make a cluster
    as well. So the pixels are compared in the region in which the mean map is hot. Then the region
    is covered in the cluster's images, and the network predicts them again.

    Parameters
    ----------
    estimator : estimator with ``explain``
        Fitted, for one label per image.
    X : images
    y : array-like of shape (n_images,) or None, default=None
        Their labels; a data set may bring its own.
    method : str, Method or None, default="gradcam"
        A method whose maps are made at the layer.
    clusterer : clusterer of scikit-learn or None, default=None
        An object with ``fit_predict``, such as ``AgglomerativeClustering`` or ``HDBSCAN``. It is
        cloned for each class, and maps that it labels -1 are in no cluster. None is k-means, with
        the number of clusters that has the highest mean silhouette. There is only one cluster if
        this is under 0.25, or if the mean distance of two maps of the class, 1 - cos, is under 0.1.
    max_clusters : int, default=6
        The most clusters per class that k-means tries.
    min_size : int, default=10
        The fewest images of a cluster that is reported: fewer may be alike by chance.
    hot : float in (0, 1], default=0.5
        The mean map is hot where it reaches this share of its maximum.
    cover : {"road", "blur", "mean"}, default="road"
        What covers the region: its surroundings, by :func:`sklcam.metrics.impute`; the blurred
        image; or the image's mean.
    random_state : int, RandomState or None, default=None
        Seed of k-means and of the choice of images whose silhouettes are computed.

    Returns
    -------
    Shortcuts
        Clusters by their strength, separation times likeness times drop, the strongest first.

    Raises
    ------
    NotFittedError
        If the estimator has not been fitted.
    ValueError
        If an argument is invalid, the network is not for one label per image, or the maps of the
        method are not made at a layer.

    Warns
    -----
    ExplanationWarning
        If maps are blank; these images are in no cluster.

    Notes
    -----
    Images are read twice, and the map of each at the layer's grid is kept. A strong cluster is a
    suggestion: objects that look the same in the same place, in images of only one class, make a
    strong cluster as well, and a watermark in a different place in each image makes none. Look at
    the images.

    References
    ----------
    Lapuschkin et al., "Unmasking Clever Hans predictors and assessing what machines really learn",
    Nature Communications 2019 (spectral relevance analysis). Covering: Rong et al., ICML 2022.

    Examples
    --------
    A network that recognises the second class by a bright corner:

    >>> import numpy as np
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.concepts import find_shortcuts
    >>> pooled = nn.Sequential(nn.AvgPool2d(2), nn.ReLU())
    >>> network = nn.Sequential(pooled, nn.Flatten(), nn.Linear(16, 2))
    >>> network[2].weight.data = torch.full((2, 16), 0.1) * torch.tensor([[1.0], [0.0]])
    >>> network[2].weight.data[1, 0] = 9.0
    >>> network[2].bias.data = torch.tensor([0.0, -4.0])
    >>> images = 0.5 * torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> y = np.repeat([0, 1], 20)
    >>> images[20:, 0, :2, :2] = 1
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit(images)
    >>> found = find_shortcuts(explainer, images, y, method="hirescam", random_state=0)
    >>> found[0].label, len(found[0]), found[0].is_strong
    (1, 20, True)
    """
    _check(clusterer, max_clusters, min_size, hot, cover)
    random = check_random_state(random_state)
    explainer, opened = open_pictures(estimator, X)
    codes = _codes(explainer, X, y, len(opened))
    maps, before, mean = _explained(explainer, opened, codes, method)
    lengths = np.linalg.norm(maps.reshape(len(maps), -1), axis=1)
    is_seen = np.isfinite(lengths) & (lengths > 0)
    units = maps.reshape(len(maps), -1) / np.where(is_seen, lengths, 1.0)[:, None]
    members = []
    for code in np.unique(codes):
        rows = np.flatnonzero((codes == code) & is_seen)
        if len(rows) < min_size:
            continue
        groups = _clusters(units[rows], clusterer, max_clusters, random)
        members += [rows[groups == group] for group in np.unique(groups[groups >= 0])]
    clusters, names = [], np.asarray(explainer.classes_).tolist()
    for rows in (rows for rows in members if len(rows) >= min_size):
        map_ = maps[rows].mean(axis=0)
        region = _region(map_, opened.image_size, hot)
        after, likeness = _covered(
            explainer, opened.subset(rows.tolist()), codes[rows], region, cover, mean
        )
        separation, order = _separation(units, rows, is_seen)
        fall = (before[rows] - after).mean(axis=0)
        clusters.append(
            Shortcut(
                label=names[codes[rows[0]]],
                rows=rows[order],
                share=len(rows) / int((codes == codes[rows[0]]).sum()),
                map=map_,
                region=region,
                separation=separation,
                likeness=likeness,
                drop=float(fall[0]),
                accuracy_drop=float(fall[1]),
            )
        )
    clusters.sort(key=lambda each: (-each.strength, -each.separation))
    return Shortcuts(clusters, int((~is_seen).sum()))


def _check(clusterer: Any, max_clusters: int, min_size: int, hot: float, cover: str) -> None:
    check_count("max_clusters", max_clusters)
    check_count("min_size", min_size, 2)
    check_number("hot, a share of the maximum,", hot, 0, 1, closed="right")
    if cover not in get_args(Cover):
        raise ValueError(f"cover must be one of {get_args(Cover)}; got {cover!r}.")
    is_clusterer = hasattr(clusterer, "fit_predict") and not isinstance(clusterer, type)
    if clusterer is not None and not is_clusterer:
        raise ValueError(
            f"clusterer must be a clusterer of scikit-learn, an object with fit_predict; got "
            f"{describe(clusterer)}."
        )


def _codes(explainer: Explainer, X: Any, y: Any, n_images: int) -> np.ndarray:
    """Return the column of each image's class."""
    task = explainer.adapter.task
    if task not in ("multiclass", "binary") or explainer.classes_ is None:
        raise ValueError(
            f"find_shortcuts is for networks of one label per image; the task here is {task!r}."
        )
    labels = explainer.expected_labels(X, y, "find_shortcuts")
    if len(labels) != n_images:
        raise ValueError(f"X has {n_images} image(s), but y has {len(labels)} label(s).")
    return encode_labels(labels, explainer.classes_)


def _explained(
    explainer: Explainer, opened: OpenedImages, codes: np.ndarray, method: AnyMethod | None
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Return the map of each image for its label, the network's answers, and the mean image."""
    labels = np.asarray(explainer.classes_)[codes]
    question = explainer.as_target(labels, len(opened))
    maps, answers, total = [], [], torch.zeros(())
    for explained in explainer.iter_explained(opened, question, methods=[method], at_layer=True):
        batch, images = explained.batch, explained.batch.inputs.images.float()
        maps.append(explained.maps[0].float().cpu().numpy())
        answers.append(_answers(explainer, explained.output, codes[batch.start : batch.stop]))
        total = total.to(images.device) + images.sum(dim=0) / len(opened)
    return np.concatenate(maps), np.concatenate(answers), total


def _answers(explainer: Explainer, output: Tensor, codes: np.ndarray) -> np.ndarray:
    """Return the probability of each image's class, and whether it is predicted: (n, 2)."""
    own = torch.from_numpy(codes).to(output.device)
    chances = explainer.probabilities(output).gather(1, own[:, None])[:, 0]
    right = (explainer.decide(output) == own).to(chances.dtype)
    return torch.stack([chances, right], dim=1).float().cpu().numpy()


def _clusters(
    units: np.ndarray, clusterer: Any, max_clusters: int, random: np.random.RandomState
) -> np.ndarray:
    """Return the cluster of each map of a class; -1 is no cluster."""
    if clusterer is not None:
        return np.asarray(clone(clusterer).fit_predict(units))
    best, found = _STRUCTURE, np.zeros(len(units), dtype=int)
    mean = units.mean(axis=0)
    if 1 - mean @ mean < _ALIKE:  # silhouettes would find structure in the noise
        return found
    n_distinct = len(np.unique(units.round(6), axis=0))
    for n_clusters in range(2, min(max_clusters, n_distinct - 1) + 1):
        groups = KMeans(n_clusters, n_init=2, random_state=random).fit_predict(units)
        size = min(len(units), _SILHOUETTES)
        drawn = random.permutation(len(units))[:size]
        if len(np.unique(groups[drawn])) < 2:
            continue
        score = silhouette_score(units[drawn], groups[drawn])
        if score > best:
            best, found = score, groups
    return found


def _separation(
    units: np.ndarray, rows: np.ndarray, is_seen: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return how far a cluster's maps lie from all others, and their order, the most typical first.

    The distance of two maps of length 1 is 1 - cos, whose means over pairs follow from sums.
    """
    others = is_seen.copy()
    others[rows] = False
    own, rest = units[rows].mean(axis=0), units[others].mean(axis=0) if others.any() else None
    order = np.argsort(-(units[rows] @ own), kind="stable")
    if rest is None:
        return 0.0, order
    n = len(rows)
    within = max(0.0, float((1 - own @ own) * n / (n - 1)))
    between = max(0.0, float(1 - own @ rest))
    farthest = max(within, between)
    return (between - within) / farthest if farthest > 0 else 0.0, order


def _region(mean: np.ndarray, size: Sequence[int], hot: float) -> np.ndarray:
    """Return where a mean map is hot, at the network's input size."""
    large = upsample(torch.from_numpy(mean)[None, None], tuple(size))[0, 0].numpy()
    return large >= hot * large.max()


def _covered(
    explainer: Explainer,
    opened: OpenedImages,
    codes: np.ndarray,
    region: np.ndarray,
    cover: Cover,
    mean: Tensor,
) -> tuple[np.ndarray, float]:
    """Cover a region of a cluster's images, and compare the pixels there.

    Returns
    -------
    answers : ndarray of shape (n_images, 2)
        With the region covered: see :func:`_answers`.
    likeness : float
    """
    answers = []
    where = torch.from_numpy(region).to(mean.device)
    directions = torch.zeros_like(mean[:, where])
    for batch in opened.batches():
        images = batch.inputs.images.detach()
        shown = (images.float() - mean)[:, :, where]
        size = shown.square().sum(dim=(1, 2), keepdim=True).sqrt()
        directions += (shown / torch.where(size > 0, size, 1.0)).sum(dim=0)
        changed = batch.inputs.with_images(_cover(images, where.expand(len(images), -1, -1), cover))
        own = codes[batch.start : batch.stop]
        answers.append(_answers(explainer, explainer.output_of(changed), own))
    n = len(opened)
    # The square of the sum of n vectors of length 1 is n plus twice the cosine of each pair.
    likeness = (float(directions.square().sum()) - n) / (n * (n - 1))
    return np.concatenate(answers), likeness


def _cover(images: Tensor, removed: Tensor, cover: Cover) -> Tensor:
    """Cover a region of each image, (n_images, height, width)."""
    images = images.detach()
    if cover == "road":
        return impute(images, removed, noise=0)
    filling = blur(images) if cover == "blur" else images.mean(dim=(2, 3), keepdim=True)
    return torch.where(removed[:, None], filling, images)
