"""Turn whatever a user may give as a target into a Target."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sklcam._validation import describe
from sklcam.cam.targets import Classes, Directions, Predicted, Target, check_scores
from sklcam.networks.inputs import Inputs, Rows

if TYPE_CHECKING:
    from sklcam.networks.adapters import Adapter


class Score(Target):
    """Target: any score that a function computes from the output, and from the inputs if needed.

    Parameters
    ----------
    function : callable
        Takes the output and returns a Tensor of one score per image. A function with two required
        arguments also takes the inputs, as the network received them.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function
        self._takes_inputs = _n_required(function) == 2
        self._own: Callable[[Tensor], Tensor] | None = None

    def bind(self, adapter: Adapter) -> Target:
        bound = Score(self.function)
        bound._own = adapter.own  # users write their functions for the network's own output
        return bound

    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        own = output if self._own is None else self._own(output)
        arguments: list[Tensor | dict[str, Tensor]] = [own]
        if self._takes_inputs:
            if inputs is None:
                raise ValueError(
                    "This callable target takes output and inputs, but no inputs were given. Give "
                    "inputs, or a callable that takes only the output."
                )
            arguments.append((inputs if rows is None else inputs.take(rows)).arguments)
        scores = check_scores(
            "A callable target",
            self.function(*arguments),
            (len(output),),
            differentiable=output.requires_grad and torch.is_grad_enabled(),
        )
        return scores[:, None]


def as_target(target: Target | Tensor | Callable[..., Tensor] | None) -> Target:
    """Return a target as an object.

    Parameters
    ----------
    target : None, Target, Tensor or callable
        None is the highest output. Integers are indices of outputs, of shape (n_images,) or
        (n_images, k). Floats are directions, of shape (n_images, n_outputs) or
        (n_images, k, n_outputs). See :class:`Score` for callables.

    Returns
    -------
    Target

    Raises
    ------
    ValueError
        If the target is none of these.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam.asked import as_target
    >>> as_target(None).resolve(torch.tensor([[1.0, 3.0], [5.0, 2.0]])).indices
    tensor([[1],
            [0]])
    """
    if isinstance(target, Target):
        return target
    if target is None:
        return Predicted()
    if not isinstance(target, Tensor):
        if callable(target):
            return Score(target)
    elif target.is_floating_point() and target.ndim in (2, 3):
        return Directions(target)
    elif not target.is_floating_point() and target.dtype != torch.bool and target.ndim in (1, 2):
        return Classes(target)
    raise ValueError(
        "target must be None, a Tensor of class indices (n_images,) or (n_images, k), a Tensor of "
        "directions (n_images, n_outputs) or (n_images, k, n_outputs), TopK or a callable; got "
        f"{describe(target)}."
    )


def target_scores(
    output: Tensor, target: Target | Tensor | Callable[..., Tensor] | None = None
) -> Tensor:
    """Return the scores to explain, differentiably.

    Parameters
    ----------
    output : Tensor
        The network's output, of shape (n_images, n_outputs) unless ``target`` is callable.
    target : None, Target such as TopK, Tensor or callable
        None is the highest output. Integers are indices of outputs, of shape (n_images,) or
        (n_images, k). Floats are directions, of shape (n_images, n_outputs) or
        (n_images, k, n_outputs); the score is the inner product with the output. A callable takes
        ``output`` and returns one score per image.

    Returns
    -------
    Tensor of shape (n_images,), or (n_images, k) for a target of several scores per image

    Raises
    ------
    ValueError
        If there is not one score, or one row of scores, per image, or not one target.

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
    if not isinstance(output, Tensor):
        raise ValueError(f"The network's output must be a Tensor; got {describe(output)}.")
    resolved = as_target(target).resolve(output)
    scores = resolved.scores(output)
    return scores if resolved.several else scores[:, 0]


def _n_required(function: Callable[..., Any]) -> int:
    """Return the number of a function's required positional arguments."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a callable written in C may have no signature
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)
