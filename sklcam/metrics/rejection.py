"""The threshold under which the pointing game rejects a class, chosen on validation images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sklcam.explain.base import AnyMethod
from sklcam.explain.nested import AnyEstimator
from sklcam.metrics.annotations import PerImage
from sklcam.metrics.evaluate import Evaluator
from sklcam.metrics.localization import pointing_game
from sklcam.metrics.measurement import Measurement


def rejection_threshold(
    estimator: AnyEstimator,
    X: Any,
    y: Any = None,
    *,
    boxes: PerImage = None,
    masks: PerImage = None,
    method: AnyMethod | None = None,
    tolerance: int = 0,
) -> float:
    """Return the threshold that wins the pointing game with rejection most often.

    Choose it on validation images, and use it on others, with
    ``evaluate(..., metrics="pointing_game_reject",
    metric_params={"pointing_game_reject": {"threshold": ...}})``. It is in the method's own units,
    so each method and network has its own.

    Parameters
    ----------
    estimator, X, y, boxes, masks, method
        See :func:`evaluate`.
    tolerance : int, default=0
        See :func:`pointing_game`.

    Returns
    -------
    float
        Halfway between two maxima of maps; among thresholds that win equally often, the lowest.

    Raises
    ------
    NotFittedError
        If the estimator has not been fitted.
    ValueError
        If :func:`evaluate` refuses an argument, or a map or the network's output has NaN.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 4.3 and appendix D.

    Examples
    --------
    There are five classes, each seen in its own channel; the first and the third are present:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.metrics import evaluate, rejection_threshold
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit(torch.rand(1, 5, 4, 4))
    >>> images = torch.zeros(1, 5, 4, 4)
    >>> images[0, :, 1, 1] = torch.tensor([16.0, 6.0, 12.0, 4.0, 2.0])
    >>> boxes = [{0: [[1, 1, 2, 2]], 2: [[0, 0, 3, 3]]}]
    >>> threshold = rejection_threshold(explainer, images, boxes=boxes)
    >>> threshold
    0.5625
    >>> params = {"pointing_game_reject": {"threshold": threshold}}
    >>> result = evaluate(explainer, images, metrics="pointing_game_reject", boxes=boxes,
    ...                   metric_params=params, progress=False)
    >>> result["pointing_game_reject"]
    array([1.])
    """
    evaluator: Evaluator[np.ndarray] = Evaluator(
        estimator,
        X,
        y,
        metrics="pointing_game_reject",
        method=method,
        boxes=boxes,
        masks=masks,
        metric_params={"pointing_game_reject": {"threshold": 0.0, "tolerance": tolerance}},
    )

    def play(batch: Measurement) -> np.ndarray:
        ranked, rows = batch["top5"], []
        for i, of_image in enumerate(batch["class_masks"]):
            maps = ranked.maps[i]
            where = torch.stack([of_image(label).to(maps) for label in ranked.labels[i]])
            pointed = pointing_game(maps, where, tolerance=tolerance, spatial_dims=maps.ndim - 1)
            present = (where > 0).flatten(1).any(dim=1)
            rows.append(torch.stack([maps.amax(dim=(1, 2)), pointed, present.to(maps)], dim=1))
        return torch.cat(rows).cpu().double().numpy()

    _, observed = evaluator.run(observe=play, progress=False)
    peaks, pointed, present = np.concatenate(observed).T
    if np.isnan(peaks).any():
        raise ValueError(
            f"{np.isnan(peaks).sum()} of {len(peaks)} maps have NaN, so no threshold can be "
            "chosen. Leave their images out."
        )
    return _best_threshold(peaks, pointed > 0, present > 0)


def _best_threshold(peaks: np.ndarray, pointed: np.ndarray, present: np.ndarray) -> float:
    """Return where to cut peaks for the most hits.

    A hit is a class that is present, pointed at and kept, or absent and rejected.
    """
    order = np.argsort(peaks, kind="stable")
    peaks, kept_wins = peaks[order], (present & pointed)[order]
    rejected_wins = ~present[order]
    # With the first i rejected and the others kept, for i from none to all of them.
    wins = np.r_[0, np.cumsum(rejected_wins)] + kept_wins.sum() - np.r_[0, np.cumsum(kept_wins)]
    # Maps are compared with it in float32, where it must still be above the peak that it rejects.
    above = np.nextafter(peaks.astype(np.float32), np.float32(np.inf)).astype(float)
    cuts = np.r_[peaks[0], np.maximum((peaks[:-1] + peaks[1:]) / 2, above[:-1]), above[-1]]
    # Equal peaks are on one side.
    can_cut = np.r_[True, peaks[:-1] < peaks[1:], True]
    return float(cuts[can_cut][wins[can_cut].argmax()])
