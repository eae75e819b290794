"""Targets: which number a map explains.

A target turns a network's output into one differentiable score per image, or into several. It
resolves itself: what depends on the network's answer, such as the predicted class, is fixed once
the output is there, so that the same question can be asked of other images.
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
    """A question about an image, answered by one score or several.

    A target of your own writes ``scores``. One that holds something for each image writes
    :meth:`take`, too; one that the network's answer decides derives from :class:`Deferred`.

    Attributes
    ----------
    several : bool
        Whether the scores of an image, and so its maps, have an axis of their own.
    k : int
        How many scores an image has.
    ragged : bool
        Whether some images may have more scores than others: k is that of the most, and the others
        are filled up.
    counts : list of int, or None
        How many each image has, of a resolved target that is ragged.
    is_placed : bool
        Whether it asks about places in an image, which the view of one has elsewhere.
    names_classes : bool
        Whether it stands for classes, and so has a probability.
    has_probabilities : bool
        Whether the scores that it takes of probabilities are some: it takes them out as they are.
    indices : Tensor of shape (n_images, k), int64, or None
        The classes that a resolved target stands for, if it stands for classes.
    directions : Tensor of shape (n_images, k, n_outputs) or None
        The vectors whose inner products with the output a resolved target scores, if it does so.

    Examples
    --------
    A target of your own: by how much the predicted class leads the next one.

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
        """Return the target of some of the images; itself, if it is the same for all of them.

        Parameters
        ----------
        rows : slice

        Returns
        -------
        Target
        """
        return self

    def named(self, indices_of: Callable[[Any], Tensor]) -> Target:
        """Return the target with the indices of classes in the place of their labels.

        Parameters
        ----------
        indices_of : callable
            Takes labels of any shape, and returns their indices in that shape; a ValueError if it
            does not know one.

        Returns
        -------
        Target
            Itself, if it holds no labels.
        """
        return self

    def framed(
        self, sizes: Sequence[tuple[int, ...]], resizing: Resizing, input_size: tuple[int, ...]
    ) -> Target:
        """Return the target of a batch with its places as the network's input has them.

        Parameters
        ----------
        sizes : sequence of tuple of int
            Height and width of each image of the batch, before it was resized.
        resizing : Resizing
            How it was.
        input_size : tuple of int
            To which height and width.

        Returns
        -------
        Target
            Itself, if it holds no places.
        """
        return self

    def without_filling(self, maps: Tensor) -> Tensor:
        """Return the maps (n_images, k, ...) as they are, or in a row (n, ...) if ragged."""
        if not (self.ragged and self.counts):
            return maps
        return torch.cat([own[:count] for own, count in zip(maps, self.counts, strict=True)])

    def check_images(self, n_images: int) -> None:  # noqa: B027  most targets are for any number
        """Raise a ValueError if it holds something for another number of images."""

    def check(self, n_classes: int) -> None:  # noqa: B027  most targets need no check
        """Raise a ValueError if a network with so many classes cannot be asked this."""

    def bind(self, adapter: Adapter) -> Target:
        """Return the target as it is asked of a network whose task is known.

        Parameters
        ----------
        adapter : Adapter

        Returns
        -------
        Target
            Itself, if outputs of all tasks can be asked this alike.

        Raises
        ------
        ValueError
            If the task does not know the question.
        """
        return self

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Target:
        """Return the target with all that depends on the network's answer fixed.

        Parameters
        ----------
        output : Tensor of shape (n_images, ...)
        inputs : Inputs or None
            What the network was given.

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
            What the network was given for the batch.
        rows : Tensor of shape (m,), slice or None
            Which image of the batch each row belongs to; None if they are the batch itself.

        Returns
        -------
        Tensor of shape (m, k)
        """

    def probability(self, probabilities: Tensor, rows: Rows = None) -> Tensor | None:
        """Return the probability of the class that is explained; of several, that of the first.

        Parameters
        ----------
        probabilities : Tensor of shape (m, n_classes), in [0, 1]
        rows : Tensor of shape (m,), slice or None
            As in ``scores``.

        Returns
        -------
        Tensor of shape (m,), or None
            None if the target stands for no class.
        """
        if self.indices is None:
            return None
        indices = self.indices if rows is None else self.indices[rows]
        return probabilities.gather(1, indices[:, :1])[:, 0]


class Deferred(Target):
    """A target that is known once the network has answered: a subclass writes ``resolve``.

    Examples
    --------
    The class that comes second, whatever it is:

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
        # Nobody has resolved it, so this output decides, and its rows are the images themselves.
        own = inputs if inputs is None or rows is None else inputs.take(rows)
        return self.resolve(output, own).scores(output, own)


class Predicted(Deferred):
    """Target: the output that is the highest, which is a classifier's predicted class."""

    names_classes = True

    def bind(self, adapter: Adapter) -> Target:
        return OnlyNumber() if adapter.task == "regression" else self

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Classes:
        return Classes(check_rows(output).argmax(dim=1))


class OnlyNumber(Deferred):
    """Target: the number that a regression returns, if there is but one."""

    def check(self, n_classes: int) -> None:
        if n_classes > 1:
            raise ValueError(
                f"The network returns {n_classes} numbers, of which none is the predicted one; say "
                "by target= which is explained: its name in classes=, or 0, 1, ...."
            )

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Numbers:
        self.check(check_rows(output).shape[1])
        return Numbers(torch.zeros(len(output), dtype=torch.int64, device=output.device))


class Positive(Deferred):
    """Target: all labels that a network of several labels finds in an image, in one map.

    The score is the sum of theirs. The map of an image without any is blank.

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
                'target="positive" is for networks of several labels, task="multilabel"; the task '
                f"here is {adapter.task!r}."
            )
        bound = Positive()
        bound._decide = adapter.decide
        return bound

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Directions:
        if self._decide is None:
            raise ValueError("Positive needs to know how labels are decided; ask an explainer.")
        return Directions(self._decide(check_rows(output).detach()).to(output.dtype))


@dataclass(frozen=True)
class TopK(Deferred):
    """Target: the k highest-scoring classes of each image, the predicted one first.

    All k are explained from one forward pass; the maps get an axis of length k after the images'.

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
    several = True  # also for k = 1: the shape of the maps follows from the kind of target alone
    names_classes = True

    def bind(self, adapter: Adapter) -> Target:
        if adapter.task == "regression":
            raise ValueError("TopK takes the highest-scoring classes; numbers have no such order.")
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
        # The axis of the scores is always there, so that nobody else has to ask.
        self.indices: Tensor = indices.reshape(len(indices), -1)
        self.k = self.indices.shape[1]

    def bind(self, adapter: Adapter) -> Target:
        return Numbers(self.given()) if adapter.task == "regression" else self

    def given(self) -> Tensor:
        """Return the indices in the shape in which they were given."""
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
    """Target: given numbers of a regression, by their places in the output."""

    names_classes = has_probabilities = False

    def probability(self, probabilities: Tensor, rows: Rows = None) -> None:
        return None


class Directions(Target):
    """Target: given directions; the score is the output's inner product with each.

    Parameters
    ----------
    vectors : Tensor of shape (n_images, n_outputs) or (n_images, k, n_outputs)
    indices : Tensor of shape (n_images,) or (n_images, k), int64, or None, default=None
        The classes that they stand for, if they do.

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
        """Return the vectors in the shape in which they were given."""
        return self.directions if self.several else self.directions[:, 0]

    def take(self, rows: slice) -> Directions:
        indices = None if self.indices is None else self.indices[rows]
        return type(self)(self.given()[rows], indices)

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Directions:
        n_images, n_outputs = check_rows(output).shape
        if (len(self.directions), self.directions.shape[-1]) != (n_images, n_outputs):
            raise ValueError(
                "A target of directions must be (n_images, n_outputs) or (n_images, k, n_outputs), "
                f"for an output of {tuple(output.shape)}; got shape "
                f"{tuple(self.given().shape)}."
            )
        indices = None if self.indices is None else self.indices.to(output.device)
        return type(self)(recordable(self.given().to(output.device)), indices)

    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        directions = self.directions if rows is None else self.directions[rows]
        return (output[:, None] * directions.to(output.dtype)).sum(dim=2)


def check_rows(output: Tensor) -> Tensor:
    """Return an output of one row per image; a ValueError for any other."""
    if output.ndim != 2:
        raise ValueError(
            f"The network's output has shape {tuple(output.shape)}, not (n_images, n_classes); "
            "give a callable target that makes one score per image of it."
        )
    return output


def check_indices(indices: Tensor, n_classes: int) -> None:
    """Raise a ValueError for indices of classes that are not there, if the host can see them."""
    if indices.device.type != "cpu" or not indices.numel():  # the host would have to wait for them
        return
    low, high = indices.min().item(), indices.max().item()
    if low < 0 or high >= n_classes:
        raise ValueError(
            f"target has class indices from {low} to {high}; those of {n_classes} classes are 0 to "
            f"{n_classes - 1}."
        )


def check_scores(
    name: str, scores: object, shape: tuple[int, ...], *, differentiable: bool
) -> Tensor:
    """Return scores; a ValueError unless they are of a shape, and differentiable if need be."""
    if not isinstance(scores, Tensor) or scores.shape != shape:
        found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else repr(type(scores))
        raise ValueError(
            f"{name} must return a tensor of one score per image, of shape {shape}; it returned "
            f"{found}."
        )
    if differentiable and not scores.requires_grad:
        raise ValueError(
            f"{name} must return scores that depend on the network's output differentiably; "
            "compute them with torch operations, without detach() or no_grad()."
        )
    return scores
