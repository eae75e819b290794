"""What displays draw: the images in any X, and by whom and how they are explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklcam.embeddings.explainer import EmbeddingCAMExplainer
from sklcam.embeddings.net import EmbeddingNet
from sklcam.images.dataset import ImageDataset
from sklcam.images.labels import dataset_labels, labels_for
from sklcam.metrics.evaluate import as_explainer

Named = Mapping[str, Any]


def explainers_by_name(estimator: Any, X: Any) -> dict[str, Any]:
    """Return by name what explains, each fitted."""
    named = estimator
    if not isinstance(estimator, Mapping):
        named = {type(estimator).__name__: estimator}
    if not named:
        raise ValueError("There is no estimator to draw: the dict is empty.")
    explainers = {}
    for name, of in named.items():
        if isinstance(of, EmbeddingNet):
            of = EmbeddingCAMExplainer(of, proxy="self", verbose=0).fit()
        explainer = as_explainer(of, X)
        explainer._network()  # an error if it is not fitted
        explainers[str(name)] = explainer
    return explainers


def explained_columns(explainers: Named, methods: Any) -> dict[str, tuple[Any, Any]]:
    """Return by name each pair of an explainer and a method."""
    if isinstance(methods, Mapping):
        named = {str(name): method for name, method in methods.items()}
    else:
        several = isinstance(methods, Sequence) and not isinstance(methods, str)
        chosen = list(methods) if several else [methods]
        named = {method_name(method): method for method in chosen}
        if len(named) < len(chosen):
            raise ValueError(f"methods has two of one name, {[*map(method_name, chosen)]}.")
    if not named:
        raise ValueError("methods is empty; name at least one.")
    columns = {}
    for name, explainer in explainers.items():
        for of_method, method in named.items():
            if len(explainers) == 1:
                column = of_method or method_name(explainer._default_method())
            else:
                column = name if len(named) == 1 else f"{name}, {of_method}"
            explainer._method(method)  # an error if there is none, or its options make no sense
            columns[column] = (explainer, method)
    return columns


def method_name(method: Any) -> str:
    """Return what a column of a method is called; nothing for the estimator's own."""
    if method is None or isinstance(method, str):
        return method or ""
    return method.__name__ if isinstance(method, type) else " ".join(repr(method).split())


def named_values(values: Any, name: str) -> dict[str, Any]:
    """Return by name what came in a dict, or alone."""
    if not isinstance(values, Mapping):
        return {name: values}
    if not values:
        raise ValueError("There is nothing to draw: the dict is empty.")
    return {str(key): of for key, of in values.items()}


def map_list(maps: Any) -> list[np.ndarray]:
    """Return maps as a list of arrays."""
    maps = maps.detach().cpu() if isinstance(maps, Tensor) else maps
    return [np.asarray(map_) for map_ in maps]


def labels_of_images(X: Any, y: Any, n_images: int) -> Any:
    """Return the labels that were given, or the data set's own, or None."""
    if y is None and dataset_labels(X) is None:
        return None
    y = labels_for(X, y, "the picture")
    if y.shape != (n_images,):
        raise ValueError(
            f"y must have one label for each of {n_images} images; got shape {y.shape}."
        )
    return y


def own_size_dataset(images: Any) -> ImageDataset:
    """Return images of any form, to be read at their own sizes."""
    return images if isinstance(images, ImageDataset) else ImageDataset(images)


def pictures_of(dataset: Any, *, own_size: bool = True) -> list[np.ndarray]:
    """Return all images of a data set as matplotlib takes them."""
    return [picture_of(dataset, i, own_size=own_size) for i in range(len(dataset))]


def picture_of(dataset: Any, i: int, *, own_size: bool) -> np.ndarray:
    """Return an image as matplotlib takes it; a network's own input, of any range, is scaled."""
    images = getattr(dataset, "images", dataset)  # among a network's other inputs
    image = images.original_image(i) if own_size else images[i][0]
    pixels = image.detach().cpu().float() / (255 if image.dtype == torch.uint8 else 1)
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        pixels = (pixels - low) / (high - low)
    if len(pixels) < 3:
        return pixels.mean(dim=0).numpy()
    return pixels[:3].permute(1, 2, 0).numpy()
