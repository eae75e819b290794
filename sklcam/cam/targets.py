"""Which number a map explains: from a network's output and a target to scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sklcam._validation import check_count, describe


class DeferredTarget(ABC):
    """A target that is known once the network's output is."""

    @property
    @abstractmethod
    def several(self) -> bool:
        """Whether it asks for several scores per image, on an axis of their own."""

    @abstractmethod
    def resolve(self, output: Tensor) -> Tensor:
        """Return class indices (n_images, k), or directions (n_images, k, n_outputs)."""


@dataclass(frozen=True)
class TopK(DeferredTarget):
    """Target: the k highest-scoring classes of each image, the predicted one first.

    All k are explained from one forward pass; the maps get an axis of length k after the images'.

    Parameters
    ----------
    k : int >= 1

    Raises
    ------
    ValueError
        If k is no int >= 1.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import TopK
    >>> TopK(2).resolve(torch.tensor([[1.0, 3.0, 2.0]]))
    tensor([[1, 2]])
    """

    k: int

    def __post_init__(self) -> None:
        check_count("k, how many classes TopK takes,", self.k)

    @property
    def several(self) -> bool:
        return True

    def check(self, n_classes: int) -> None:
        """Raise a ValueError if there are fewer classes than k."""
        if self.k > n_classes:
            raise ValueError(
                f"TopK({self.k}) asks for more classes than the network has: {n_classes}."
            )

    def resolve(self, output: Tensor) -> Tensor:
        """Return the classes' indices, of shape (n_images, k)."""
        self.check(output.shape[1])
        return output.topk(self.k, dim=1).indices


Target = Tensor | DeferredTarget | Callable[[Tensor], Tensor] | None


def resolve_target(output: Tensor, target: Tensor | DeferredTarget | None = None) -> Tensor:
    """Return what is explained of each image, once the output is known.

    Parameters
    ----------
    output : Tensor of shape (n_images, n_outputs)
        The network's output: class scores, or an embedding.
    target : None, DeferredTarget such as TopK, or Tensor
        None is the output that is the highest. Integers are indices of outputs, of shape
        (n_images,) or (n_images, k). Floats are directions, of shape (n_images, n_outputs) or
        (n_images, k, n_outputs): the score is the inner product with the output.

    Returns
    -------
    Tensor of shape (n_images, k), int64, or (n_images, k, n_outputs), float
        k is 1 for a target of one score per image.

    Raises
    ------
    ValueError
        If the output is not one row per image, or the targets are not.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam.targets import resolve_target
    >>> resolve_target(torch.tensor([[1.0, 3.0], [5.0, 2.0]]))
    tensor([[1],
            [0]])
    """
    if not isinstance(output, Tensor):
        raise ValueError(f"The network's output must be a Tensor; got {describe(output)}.")
    if output.ndim != 2:
        raise ValueError(
            f"The network's output has shape {tuple(output.shape)}, not (n_images, n_classes); "
            "give a callable target that makes one score per image of it."
        )
    if target is None:
        return output.argmax(dim=1, keepdim=True)
    if isinstance(target, DeferredTarget):
        return target.resolve(output)
    if not isinstance(target, Tensor) or target.dtype == torch.bool:
        raise ValueError(
            "target must be None, a Tensor of class indices or of directions, TopK or a callable; "
            f"got {describe(target)}."
        )
    if target.is_floating_point():
        return _check_directions(target, output)
    if target.ndim not in (1, 2) or len(target) != len(output):
        raise ValueError(
            f"target must hold one class, or one row of classes, per image; got shape "
            f"{tuple(target.shape)} for {len(output)} images."
        )
    check_indices(target, output.shape[1])
    return target.to(output.device).reshape(len(output), -1)


def check_indices(target: Tensor, n_classes: int) -> None:
    """Raise a ValueError for indices of classes that are not there, if the host can see them."""
    if target.device.type != "cpu" or not target.numel():  # the host would have to wait for them
        return
    indices = target.numpy()
    low, high = indices.min(), indices.max()
    if low < 0 or high >= n_classes:
        raise ValueError(
            f"target has class indices from {low} to {high}; those of {n_classes} classes are 0 to "
            f"{n_classes - 1}."
        )


def _check_directions(target: Tensor, output: Tensor) -> Tensor:
    fits = target.ndim in (2, 3) and len(target) == len(output)
    if not fits or target.shape[-1] != output.shape[1]:
        raise ValueError(
            "A target of directions must be (n_images, n_outputs) or (n_images, k, n_outputs), for "
            f"an output of {tuple(output.shape)}; got shape {tuple(target.shape)}."
        )
    return target.to(output.device).reshape(len(output), -1, output.shape[1])


def target_scores(output: Tensor, target: Target = None) -> Tensor:
    """Return the scores to explain, differentiably.

    Parameters
    ----------
    output : Tensor
        The network's output; of shape (n_images, n_outputs) unless ``target`` is callable.
    target : None, DeferredTarget, Tensor or callable
        As of ``resolve_target``, in this module. A callable takes ``output`` and returns one score
        per image.

    Returns
    -------
    Tensor of shape (n_images,), or (n_images, k) for a target of several scores per image

    Raises
    ------
    ValueError
        If the scores or the targets are not one (or one row) per image.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import TopK, target_scores
    >>> logits = torch.tensor([[1.0, 3.0], [5.0, 2.0]])
    >>> target_scores(logits)
    tensor([3., 5.])
    >>> target_scores(logits, torch.tensor([0, 1]))
    tensor([1., 2.])
    >>> target_scores(logits, TopK(2))
    tensor([[3., 1.],
            [5., 2.]])
    >>> target_scores(logits, torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
    tensor([4., 4.])
    """
    if callable(target):
        return _check_scores(target(output), len(output))
    resolved = resolve_target(output, target)
    if resolved.is_floating_point():
        scores = (output[:, None] * resolved.to(output.dtype)).sum(dim=2)
    else:
        scores = output.gather(1, resolved)
    return scores if has_several(target) else scores[:, 0]


def has_several(target: Target) -> bool:
    """Whether a target asks for several scores per image."""
    if isinstance(target, Tensor):
        return target.ndim == 2 + target.is_floating_point()
    return isinstance(target, DeferredTarget) and target.several


def _check_scores(scores: object, n_images: int) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != (n_images,):
        came = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else repr(type(scores))
        raise ValueError(
            f"A callable target must return a tensor of one score per image, of shape "
            f"({n_images},); it returned {came}."
        )
    if not scores.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "The callable target's scores do not depend on the network's output differentiably; "
            "compute them with torch operations, without detach() or no_grad()."
        )
    return scores
