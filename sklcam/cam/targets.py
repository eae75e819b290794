"""Which number a map explains: from a network's output and a target to one score per image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Target = Tensor | Callable[[Tensor], Tensor] | None


def target_scores(output: Tensor, target: Target = None) -> Tensor:
    """Return the score to explain, one per image, differentiably.

    Parameters
    ----------
    output : Tensor
        The network's output; of shape (n_images, n_classes) unless ``target`` is callable.
    target : None, Tensor of shape (n_images,) of class indices, or callable
        None is the predicted class. A callable takes ``output`` and returns one score per image.

    Returns
    -------
    Tensor of shape (n_images,)

    Raises
    ------
    ValueError
        If the scores or the targets are not one per image.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam.targets import target_scores
    >>> logits = torch.tensor([[1.0, 3.0], [5.0, 2.0]])
    >>> target_scores(logits)
    tensor([3., 5.])
    >>> target_scores(logits, torch.tensor([0, 1]))
    tensor([1., 2.])
    """
    if callable(target):
        return _check_scores(target(output), len(output))
    if output.ndim != 2:
        raise ValueError(
            f"The network's output has shape {tuple(output.shape)}, not (n_images, n_classes); "
            "give a callable target that makes one score per image of it."
        )
    if target is None:
        target = output.argmax(dim=1)
    elif target.shape != (len(output),):
        raise ValueError(
            f"target must hold one class per image; got shape {tuple(target.shape)} "
            f"for {len(output)} images."
        )
    return output.gather(1, target.to(output.device)[:, None])[:, 0]


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
