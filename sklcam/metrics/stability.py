"""How much a map changes when the image hardly changes.

The images are changed by invisible noise and explained for the same class as the image itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sklcam._validation import check_maps, describe
from sklcam.metrics.composites import ratio_or_zero

if TYPE_CHECKING:
    from sklcam.metrics.measurement import Measurement


def max_sensitivity(maps: Tensor, neighbour_maps: Tensor, *, spatial_dims: int = 2) -> Tensor:
    r"""The largest change of a map, relative to the map, among images close to its own.

    .. math:: \max_{\|\delta\|_\infty \le r}
              \frac{\|\Phi(x + \delta) - \Phi(x)\|_2}{\|\Phi(x)\|_2}

    Under the name ``"max_sensitivity"``, :func:`evaluate` draws the images and explains them for
    the class that is explained in the image itself.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width)
        The method's own maps, *not* scaled to [0, 1].
    neighbour_maps : Tensor of shape (n_samples, n_images, height, width)
        The maps of images close to each image.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,), >= 0; lower is better. NaN for a map of zeros, to which no change
    is relative, and where a map has NaN.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width), or
        ``neighbour_maps`` is not a tensor of one or several more for each on the same device.

    References
    ----------
    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019, definition 2,
    relative to the map as in captum and Quantus.

    Notes
    -----
    The options of ``"max_sensitivity"`` and ``"local_lipschitz"`` in ``metric_params``, which share
    their images, are ``radius``, 0.02, and ``n_samples``, 10, as in captum. Each value of the image
    as the *network* gets it changes by a uniform draw from -radius to radius: normalised by
    ImageNet's deviations, 0.02 is about one of 255 grey levels. Each image has draws of its own,
    whatever the batch. The maximum is over the images that were drawn, so that it rises with their
    number.

    Methods that draw random numbers, such as RISE and SmoothGradCAM++, draw the same for all of
    these images: by their ``random_state`` if it is an int, and otherwise by a seed of the
    evaluation. So the measured change comes from the image, not from the draws.

    A map that never changes, such as that of ``method="uniform"``, is perfectly stable: read it
    beside a metric that such a map fails.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import max_sensitivity
    >>> maps = torch.tensor([[[3.0, 4.0]]])
    >>> neighbours = torch.tensor([[[[3.0, 5.0]]], [[[3.0, 2.0]]]])
    >>> max_sensitivity(maps, neighbours)
    tensor([0.4000])
    """
    _check_neighbours(maps, neighbour_maps, spatial_dims)
    changes = _changes(maps, neighbour_maps).amax(dim=0)
    return _unless_blank(maps, changes / maps.flatten(1).norm(dim=1))


def local_lipschitz(
    maps: Tensor, neighbour_maps: Tensor, distances: Tensor, *, spatial_dims: int = 2
) -> Tensor:
    r"""The largest change of a map per unit of change of the image.

    .. math:: \max_{\|x' - x\|_\infty \le r}
              \frac{\|\Phi(x') - \Phi(x)\|_2}{\|x' - x\|_2}

    Under the name ``"local_lipschitz"``, :func:`evaluate` draws the images and explains them; for
    the options see :func:`max_sensitivity`.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width)
        The method's own maps, *not* scaled to [0, 1]: networks and methods whose maps have
        different units cannot be compared; use :func:`max_sensitivity` for that.
    neighbour_maps : Tensor of shape (n_samples, n_images, height, width)
        The maps of images close to each image.
    distances : Tensor of shape (n_samples, n_images)
        How far these are from it: the 2-norm of what was added to the network's input.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,), >= 0; lower is better. NaN for a map of zeros, and where a map has
    NaN.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width), or
        ``neighbour_maps`` is not a tensor of one or several more for each, with a distance, on the
        same device.

    References
    ----------
    Alvarez-Melis, Jaakkola, "On the Robustness of Interpretability Methods", ICML workshop 2018,
    eq. 2.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import local_lipschitz
    >>> maps = torch.tensor([[[3.0, 4.0]]])
    >>> neighbours = torch.tensor([[[[3.0, 5.0]]], [[[3.0, 2.0]]]])
    >>> local_lipschitz(maps, neighbours, torch.tensor([[0.1], [0.4]]))
    tensor([10.])
    """
    _check_neighbours(maps, neighbour_maps, spatial_dims)
    wanted = neighbour_maps.shape[:2]
    if not isinstance(distances, Tensor) or distances.shape != wanted:
        raise ValueError(
            f"distances must be a Tensor of shape {tuple(wanted)}, (n_samples, n_images); got "
            f"{describe(distances)}."
        )
    changes = _changes(maps, neighbour_maps)
    return _unless_blank(maps, ratio_or_zero(changes, distances.to(changes)).amax(dim=0))


def _check_neighbours(maps: Tensor, neighbour_maps: Tensor, spatial_dims: int) -> None:
    check_maps(spatial_dims, maps=maps)
    is_alike = isinstance(neighbour_maps, Tensor) and neighbour_maps.shape[1:] == maps.shape
    if not is_alike or not len(neighbour_maps) or neighbour_maps.device != maps.device:
        shape = ", ".join(map(str, maps.shape))
        raise ValueError(
            f"neighbour_maps must be a Tensor of shape (n_samples, {shape}) on "
            f"{maps.device}; got {describe(neighbour_maps)}."
        )


def _changes(maps: Tensor, neighbour_maps: Tensor) -> Tensor:
    return (neighbour_maps - maps).flatten(2).norm(dim=2)


def _unless_blank(maps: Tensor, values: Tensor) -> Tensor:
    return torch.where((maps == 0).flatten(1).all(dim=1), torch.nan, values)


def neighbours(measurement: Measurement) -> tuple[Tensor, Tensor]:
    """Draw images close to those of a batch, and explain them for the same targets.

    Parameters
    ----------
    measurement : Measurement

    Returns
    -------
    maps : Tensor of shape (n_samples, n_images, height, width)
    distances : Tensor of shape (n_samples, n_images)
    """
    options = measurement.options("neighbours")
    radius, n_samples = options.get("radius", 0.02), options.get("n_samples", 10)
    inputs, (method, scaled) = measurement.batch.inputs, measurement.plan.explained["raw_maps"]
    images = inputs.images
    draws = [np.random.default_rng([measurement.plan.seed, row]) for row in measurement.rows]
    maps, distances = [], []
    for _ in range(n_samples):
        noise = np.stack([draw.random(images.shape[1:], dtype=np.float32) for draw in draws])
        noise = torch.from_numpy(2 * noise - 1).to(images.device, images.dtype) * radius
        changed = inputs.with_images(images + noise)
        maps.append(measurement.explain(changed, measurement.target, method, normalize=scaled)[0])
        # Half precision rounds off a part of the noise, which is then not added.
        distances.append((changed.images - images).flatten(1).float().norm(dim=1))
    return torch.stack(maps), torch.stack(distances)
