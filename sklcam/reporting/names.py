"""Metrics, layers and grids in plain words, for readers who do not know their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sklcam.explain.base import Explainer
from sklcam.networks.layers import TargetLayer

_METRICS = {
    "accuracy": "accuracy",
    "adcc": "overall score (ADCC)",
    "arcc": "overall score with ROAD (ARCC)",
    "average_drop": "confidence lost",
    "average_increase": "confidence gained",
    "coherency": "similarity to the masked image's map",
    "complexity": "area covered",
    "consistency": "stability under crops and flips",
    "consistency_changed": "stability where the prediction changes",
    "consistency_kept": "stability where the prediction stays",
    "cose": "stability and sensitivity (COSE)",
    "cose_consistency": "stability under alterations",
    "cose_sensitivity": "change with wrong predictions",
    "dauc": "confidence under deletion",
    "heatmap_ratio": "brightness on the object",
    "iauc": "confidence under insertion",
    "inside_outside_ratio": "brightness on the object relative to outside",
    "local_lipschitz": "change of the map per change of the image",
    "localization_accuracy": "boxes found",
    "max_sensitivity": "change under noise",
    "mean_adcc": "mean of the images' overall scores (ADCC)",
    "mean_arcc": "mean of the images' overall scores (ARCC)",
    "pixel_auc": "object brighter than the rest",
    "pointing_game": "brightest point on the object",
    "pointing_game_reject": "classes found or rejected",
    "rank_correlation": "agreement with occlusion",
    "reference_correlation": "agreement with the reference",
    "relevance_rank_accuracy": "object among the brightest pixels",
    "road": "effect of the bright pixels (ROAD)",
    "sparsity": "concentration on few pixels",
    "top1_localization_error": "likeliest class or its box wrong",
    "top5_localization_error": "all five likeliest classes or boxes wrong",
    "topk_intersection": "brightest pixels on the object",
}


def plain_name(metric: str) -> str:
    """Return a metric's name for sentences and menus; a user's own metric keeps its name.

    Examples
    --------
    >>> from sklcam.reporting.names import plain_name
    >>> plain_name("complexity"), plain_name("mine")
    ('area covered', 'mine')
    """
    return _METRICS.get(metric, metric)


def plain_layer(explainer: Explainer) -> str:
    """Return the explained layers in words; "" if there are none.

    Parameters
    ----------
    explainer : Explainer

    Returns
    -------
    str
        Such as "last convolutional block (features.8)".
    """
    layers = list(getattr(explainer, "target_layers", None) or ())
    if not layers:
        return ""
    names = ", ".join(str(layer.name) for layer in layers)
    if len(layers) > 1:
        return f"layers {names}"
    is_usual = _asked_layer(explainer) == "auto"
    return f"{_kind(layers[0])} ({names})" if is_usual else f"layer {names}"


def _asked_layer(explainer: Any) -> Any:
    """Return the layer that was given to an explainer, or to the estimator in it."""
    for each in (explainer, getattr(explainer, "model", None)):
        if (asked := getattr(each, "target_layer", None)) is not None:
            return asked
    return None


def _kind(layer: TargetLayer) -> str:
    return {
        "tokens": "last transformer block",
        "nchw": "last convolutional block",
        "ncdhw": "last convolutional block",
    }.get(layer.layout, "last block")


def plain_grid(sides: Sequence[int]) -> str:
    """Return the size of a map's grid in words.

    Examples
    --------
    >>> from sklcam.reporting.names import plain_grid
    >>> plain_grid((7, 7)), plain_grid(())
    ('maps of 7 × 7 places', '')
    """
    return f"maps of {' × '.join(map(str, sides))} places" if sides else ""


@contextmanager
def watched_grid(explainer: Explainer) -> Iterator[list[int]]:
    """Record the grid of the only explained layer while the network runs for other reasons.

    Yields
    ------
    list of int
        Empty until the layer has run in this process; then its rows and columns.
    """
    sides: list[int] = []
    layers, network = (
        list(getattr(explainer, "target_layers", None) or ()),
        explainer.adapter.network,
    )
    module = dict(network.named_modules()).get(layers[0].name) if len(layers) == 1 else None
    if module is None:
        yield sides
        return
    layer, runs = layers[0], list[Any]()

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        runs.append(output.detach() if isinstance(output, Tensor) else None)

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        # A layer may run several times in a pass, on grids that differ.
        output = runs[-1 if layer.run is None else layer.run] if runs else None
        for handle in handles:
            handle.remove()
        runs.clear()
        if output is not None:
            sides.extend(layer.to_grid(output).shape[2:])

    handles = [module.register_forward_hook(look), network.register_forward_hook(end)]
    try:
        yield sides
    finally:
        for handle in handles:
            handle.remove()
