"""Targets: the number that a map explains.

A target turns a network's output into one or several differentiable scores per image. What depends
on the output, such as the predicted class, is fixed once the output is known. The target is then
resolved, and the same score can be computed for other images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sklcam._validation import check_count
from sklcam.networks.inputs import Inputs, Rows, recordable

if TYPE_CHECKING:
    from sklcam.images.frames import Resizing
    from sklcam.networks.adapters import Adapter


class Target(ABC):
    """Base class of targets: one or several scores per image.

    To write your own target, implement ``scores``. If it holds a value per image, implement
    :meth:`take` too. If it depends on the network's output, derive it from :class:`Deferred`.

    Attributes
    ----------
    several : bool
        Whether an image's scores, and therefore its maps, have an axis of their own.
    k : int
        The number of scores per image.
    ragged : bool
        Whether images may differ in their number of scores. Then k is the highest number, and the
        other images are padded to it.
    counts : list of int, or None
        The number of scores of each image, for a resolved target that is ragged.
    is_placed : bool
        Whether the target refers to places in an image. These lie elsewhere in a view of it.
    names_classes : bool
        Whether the target stands for classes, and so has a probability.
    has_probabilities : bool
        Whether ``scores``, applied to probabilities, picks out probabilities unchanged.
    indices : Tensor of shape (n_images, k), int64, or None
        The classes of a resolved target, if it stands for classes.
    directions : Tensor of shape (n_images, k, n_outputs) or None
        The vectors of a resolved target whose scores are inner products with the output.

    Examples
    --------
    A target of your own: the margin between the predicted class and the next one.

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import Target
    >>> class Margin(Target):
    ...     def scores(self, output, inputs=None, rows=None):
    ...         first, second = output.topk(2, dim=1).values.unbind(1)
    ...         return (first - second)[:, None]
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit()
    >>> explainer.explain(torch.tensor([[[[0.0, 3.0]], [[1.0, 0.0]]]]), target=Margin())
    array([[[0., 1.]]], dtype=float32)
    """

    several: bool = False
    k: int = 1
    ragged: bool = False
    counts: list[int] | None = None
    is_placed: bool = False
    names_classes: bool = False
    has_probabilities: bool = False
    indices: Tensor | None = None
    directions: Tensor | None = None

    def take(self, rows: slice) -> Target:
        """Return the target of some of the images, or itself if it is the same for all images.

        Parameters
        ----------
        rows : slice

        Returns
        -------
        Target
        """
        return self

    def named(self, indices_of: Callable[[Any], Tensor]) -> Target:
        """Return the target with class labels replaced by class indices.

        Parameters
        ----------
        indices_of : callable
            Takes labels of any shape and returns their indices in the same shape. Raises a
            ValueError for an unknown label.

        Returns
        -------
        Target
            Itself, if it holds no labels.
        """
        return self

    def framed(
        self, sizes: Sequence[tuple[int, ...]], resizing: Resizing, input_size: tuple[int, ...]
    ) -> Target:
        """Return the target of a batch with its places moved to where the network's input has them.

        Parameters
        ----------
        sizes : sequence of tuple of int
            Height and width of each image of the batch before resizing.
        resizing : Resizing
            How the images were resized.
        input_size : tuple of int
            Height and width after resizing.

        Returns
        -------
        Target
            Itself, if it refers to no places.
        """
        return self

    def without_filling(self, maps: Tensor) -> Tensor:
        """Return maps (n_images, k, ...) unchanged, or as (n, ...) without padding if ragged."""
        if not (self.ragged and self.counts):
            return maps
        return torch.cat([own[:count] for own, count in zip(maps, self.counts, strict=True)])

    def check_images(self, n_images: int) -> None:  # noqa: B027  most targets are for any number
        """Raise a ValueError if the target is for another number of images."""

    def check(self, n_classes: int) -> None:  # noqa: B027  most targets need no check
        """Raise a ValueError if the target does not suit a network with this many classes."""

    def bind(self, adapter: Adapter) -> Target:
        """Return the target for the network's task.

        Parameters
        ----------
        adapter : Adapter

        Returns
        -------
        Target
            Itself, if it is the same for all tasks.

        Raises
        ------
        ValueError
            If the target is not defined for the task.
        """
        return self

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Target:
        """Return the target with everything fixed that depends on the network's output.

        Parameters
        ----------
        output : Tensor of shape (n_images, ...)
        inputs : Inputs or None
            The network's inputs.

        Returns
        -------
        Target
        """
        return self

    @abstractmethod
    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        """Return the scores of an output, differentiably.

        Parameters
        ----------
        output : Tensor of shape (m, ...)
        inputs : Inputs or None
            The network's inputs for the batch.
        rows : Tensor of shape (m,), slice or None
            The image of the batch that each row belongs to. None if the rows are the batch itself.

        Returns
        -------
        Tensor of shape (m, k)
        """

    def probability(self, probabilities: Tensor, rows: Rows = None) -> Tensor | None:
        """Return the probability of the explained class, or of the first if there are several.

        Parameters
        ----------
        probabilities : Tensor of shape (m, n_classes), in [0, 1]
        rows : Tensor of shape (m,), slice or None
            As in ``scores``.

        Returns
        -------
        Tensor of shape (m,), or None
            None if the target does not stand for a class.
        """
        if self.indices is None:
            return None
        indices = self.indices if rows is None else self.indices[rows]
        return probabilities.gather(1, indices[:, :1])[:, 0]


class Deferred(Target):
    """Base class of targets that depend on the network's output: implement ``resolve``.

    Examples
    --------
    The class with the second-highest score:

    >>> import torch
    >>> from sklcam.cam import Classes, Deferred
    >>> class RunnerUp(Deferred):
    ...     def resolve(self, output, inputs=None):
    ...         return Classes(output.topk(2, dim=1).indices[:, 1])
    >>> RunnerUp().scores(torch.tensor([[1.0, 3.0, 2.0]]))
    tensor([[2.]])
    """

    @abstractmethod
    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Target: ...

    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        # The target is not resolved yet, so this output decides. Its rows are the images.
        own = inputs if inputs is None or rows is None else inputs.take(rows)
        return self.resolve(output, own).scores(output, own)


class Predicted(Deferred):
    """Target: the highest output, which is a classifier's predicted class."""

    names_classes = True

    def bind(self, adapter: Adapter) -> Target:
        return OnlyNumber() if adapter.task == "regression" else self

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Classes:
        return Classes(check_rows(output).argmax(dim=1))


class OnlyNumber(Deferred):
    """Target: the number that a regression returns, if it returns only one."""

    def check(self, n_classes: int) -> None:
        if n_classes > 1:
            raise ValueError(
                f"The network returns {n_classes} numbers, and none of them is a default target. "
                "Choose one with target=: its name in classes=, or its index 0, 1, ...."
            )

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Numbers:
        self.check(check_rows(output).shape[1])
        return Numbers(torch.zeros(len(output), dtype=torch.int64, device=output.device))


class Positive(Deferred):
    """Target: all labels that a multilabel network finds in an image, in one map.

    The score is the sum of the scores of these labels. If there are none, the map is blank.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", task="multilabel", verbose=0).fit()
    >>> image = torch.tensor([[[[0.0, 2.0]], [[1.0, 0.0]], [[0.0, 0.0]]]])
    >>> explainer.explain(image, target="positive", normalize=False)
    array([[[0.5, 1. ]]], dtype=float32)
    """

    def __init__(self) -> None:
        self._decide: Callable[[Tensor], Tensor] | None = None

    def bind(self, adapter: Adapter) -> Target:
        if adapter.task != "multilabel":
            raise ValueError(
                f'The task is {adapter.task!r}, but target="positive" is for multilabel networks. '
                'Set task="multilabel" if this is one, or choose another target.'
            )
        bound = Positive()
        bound._decide = adapter.decide
        return bound

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Directions:
        if self._decide is None:
            raise ValueError(
                "Positive does not know how this network decides on its labels. Pass "
                'target="positive" to an explainer.'
            )
        return Directions(self._decide(check_rows(output).detach()).to(output.dtype))


@dataclass(frozen=True)
class TopK(Deferred):
    """Target: the k highest-scoring classes of each image, the predicted class first.

    One forward pass explains all k. The maps have an axis of length k after the axis of the images.

    Parameters
    ----------
    k : int >= 1

    Raises
    ------
    ValueError
        If k is not an int >= 1.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import TopK
    >>> TopK(2).resolve(torch.tensor([[1.0, 3.0, 2.0]])).indices
    tensor([[1, 2]])
    """

    k: int
    several = True  # also for k = 1, so that the number of axes does not depend on k
    names_classes = True

    def bind(self, adapter: Adapter) -> Target:
        if adapter.task == "regression":
            raise ValueError(
                "TopK explains the highest-scoring classes, but the task is 'regression', whose "
                "outputs are not ranked. Choose an output with target=."
            )
        return self

    def __post_init__(self) -> None:
        check_count("k, the number of classes that TopK takes,", self.k)

    def check(self, n_classes: int) -> None:
        if self.k > n_classes:
            raise ValueError(
                f"TopK({self.k}) asks for more classes than the network has: {n_classes}."
            )

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Classes:
        self.check(check_rows(output).shape[1])
        return Classes(output.topk(self.k, dim=1).indices)


class Classes(Target):
    """Target: given classes.

    Parameters
    ----------
    indices : Tensor of shape (n_images,) or (n_images, k), int64

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import Classes
    >>> Classes(torch.tensor([2, 0])).scores(torch.tensor([[1.0, 3.0, 2.0], [4.0, 5.0, 6.0]]))
    tensor([[2.],
            [4.]])
    """

    names_classes = True
    has_probabilities = True

    def __init__(self, indices: Tensor):
        self.several = indices.ndim == 2
        # The axis of the scores is always there, so that callers need not check.
        self.indices: Tensor = indices.reshape(len(indices), -1)
        self.k = self.indices.shape[1]

    def bind(self, adapter: Adapter) -> Target:
        return Numbers(self.given()) if adapter.task == "regression" else self

    def given(self) -> Tensor:
        """Return the indices in their original shape."""
        return self.indices if self.several else self.indices[:, 0]

    def take(self, rows: slice) -> Classes:
        return type(self)(self.given()[rows])

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Classes:
        if len(self.indices) != len(check_rows(output)):
            raise ValueError(
                "target must hold one class, or one row of classes, per image; got shape "
                f"{tuple(self.given().shape)} for {len(output)} images."
            )
        check_indices(self.indices, output.shape[1])
        return type(self)(recordable(self.given().to(output.device)))

    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        return output.gather(1, self.indices if rows is None else self.indices[rows])


class Numbers(Classes):
    """Target: given numbers of a regression, by their indices in the output."""

    names_classes = has_probabilities = False

    def probability(self, probabilities: Tensor, rows: Rows = None) -> None:
        return None


class Directions(Target):
    """Target: given directions. The score is the inner product of the output with each direction.

    Parameters
    ----------
    vectors : Tensor of shape (n_images, n_outputs) or (n_images, k, n_outputs)
    indices : Tensor of shape (n_images,) or (n_images, k), int64, or None, default=None
        The classes that the directions stand for, if any.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import Directions
    >>> Directions(torch.tensor([[1.0, -1.0]])).scores(torch.tensor([[3.0, 5.0]]))
    tensor([[-2.]])
    """

    def __init__(self, vectors: Tensor, indices: Tensor | None = None):
        self.several = vectors.ndim == 3
        self.directions: Tensor = vectors if self.several else vectors[:, None]
        self.k = self.directions.shape[1]
        self.names_classes = indices is not None
        self.indices = None if indices is None else indices.reshape(len(vectors), -1)

    def given(self) -> Tensor:
        """Return the vectors in their original shape."""
        return self.directions if self.several else self.directions[:, 0]

    def take(self, rows: slice) -> Directions:
        indices = None if self.indices is None else self.indices[rows]
        return type(self)(self.given()[rows], indices)

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Directions:
        n_images, n_outputs = check_rows(output).shape
        if (len(self.directions), self.directions.shape[-1]) != (n_images, n_outputs):
            raise ValueError(
                "Directions must have shape (n_images, n_outputs) or (n_images, k, n_outputs) for "
                f"an output of shape {tuple(output.shape)}; got shape "
                f"{tuple(self.given().shape)}."
            )
        indices = None if self.indices is None else self.indices.to(output.device)
        return type(self)(recordable(self.given().to(output.device)), indices)

    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        directions = self.directions if rows is None else self.directions[rows]
        return (output[:, None] * directions.to(output.dtype)).sum(dim=2)


def check_rows(output: Tensor) -> Tensor:
    """Return the output, or raise a ValueError unless it has one row per image."""
    if output.ndim != 2:
        raise ValueError(
            f"The network's output has shape {tuple(output.shape)}, not (n_images, n_classes). "
            "Give a callable target that turns the output into one score per image."
        )
    return output


def check_indices(indices: Tensor, n_classes: int) -> None:
    """Raise a ValueError for class indices out of range, if they are on the CPU."""
    if indices.device.type != "cpu" or not indices.numel():  # the host would have to wait for them
        return
    low, high = indices.min().item(), indices.max().item()
    if low < 0 or high >= n_classes:
        raise ValueError(
            f"target has class indices from {low} to {high}, but the network has {n_classes} "
            f"classes. Give indices from 0 to {n_classes - 1}."
        )


def check_scores(
    name: str, scores: object, shape: tuple[int, ...], *, differentiable: bool
) -> Tensor:
    """Return the scores, or raise a ValueError if their shape is wrong or a gradient is missing."""
    if not isinstance(scores, Tensor) or scores.shape != shape:
        found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else repr(type(scores))
        raise ValueError(
            f"{name} must return a tensor of one score per image, of shape {shape}; it returned "
            f"{found}."
        )
    if differentiable and not scores.requires_grad:
        raise ValueError(
            f"{name} must return scores that are differentiable with respect to the network's "
            "output. Compute them with torch operations, without detach() or no_grad()."
        )
    return scores
