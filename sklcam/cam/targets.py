"""Which number a map explains: from a network's output and a target to scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TopK:
    """Target: the k highest-scoring classes of each image, the predicted one first.

    All k are explained from one forward pass; the maps get an axis of length k after the images'.

    Parameters
    ----------
    k : int >= 1

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import TopK
    >>> TopK(2).classes(torch.tensor([[1.0, 3.0, 2.0]]))
    tensor([[1, 2]])
    """

    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"TopK takes a positive number of classes; got {self.k!r}.")

    def check(self, n_classes: int) -> None:
        """Raise a ValueError if there are fewer classes than k."""
        if self.k > n_classes:
            raise ValueError(
                f"TopK({self.k}) asks for more classes than the network has: {n_classes}."
            )

    def classes(self, output: Tensor) -> Tensor:
        """Return the classes' indices, of shape (n_images, k)."""
        self.check(output.shape[1])
        return output.topk(self.k, dim=1).indices


Target = Tensor | TopK | Callable[[Tensor], Tensor] | None


def target_classes(output: Tensor, target: Tensor | TopK | None = None) -> Tensor:
    """Return the classes to explain.

    Parameters
    ----------
    output : Tensor of shape (n_images, n_classes)
        The network's output.
    target : None, TopK, or Tensor of class indices of shape (n_images,) or (n_images, k)
        None is the predicted class.

    Returns
    -------
    Tensor of shape (n_images, k), int64
        One column for None and for a target of one axis.

    Raises
    ------
    ValueError
        If the output is not one score per class, or the targets are not one row per image.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam.targets import target_classes
    >>> target_classes(torch.tensor([[1.0, 3.0], [5.0, 2.0]]))
    tensor([[1],
            [0]])
    """
    if output.ndim != 2:
        raise ValueError(
            f"The network's output has shape {tuple(output.shape)}, not (n_images, n_classes); "
            "give a callable target that makes one score per image of it."
        )
    if target is None:
        return output.argmax(dim=1, keepdim=True)
    if isinstance(target, TopK):
        return target.classes(output)
    if target.ndim not in (1, 2) or len(target) != len(output):
        raise ValueError(
            f"target must hold one class, or one row of classes, per image; got shape "
            f"{tuple(target.shape)} for {len(output)} images."
        )
    return target.to(output.device).reshape(len(output), -1)


def target_scores(output: Tensor, target: Target = None) -> Tensor:
    """Return the scores to explain, differentiably.

    Parameters
    ----------
    output : Tensor
        The network's output; of shape (n_images, n_classes) unless ``target`` is callable.
    target : None, TopK, Tensor of class indices of shape (n_images,) or (n_images, k), or callable
        None is the predicted class. A callable takes ``output`` and returns one score per image.

    Returns
    -------
    Tensor of shape (n_images,), or (n_images, k) for a target of several classes per image

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
    """
    if callable(target):
        return _check_scores(target(output), len(output))
    scores = output.gather(1, target_classes(output, target))
    return scores if has_several(target) else scores[:, 0]


def has_several(target: Target) -> bool:
    """Whether a target asks for several classes per image."""
    return isinstance(target, TopK) or (isinstance(target, Tensor) and target.ndim == 2)


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
