"""Origins of attention: whether queries, keys and values are made of one sequence, row by row.

Square weights alone do not distinguish attention within one sequence from attention between two.
The graph of a pass does. Going back from a run, the nearest tensor that query, key and value are
all made of must have a row for each token, and query, key and value i must be made of row i alone.
Gradients show this whatever the operations in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import combinations, count, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge, saved_tensors_hooks

from sklcam.networks.attention import AttentionRecord, Function

# A result of an operation: its node, and the number of the result.
_Place = tuple[Node, int]

# The fraction of a row's gradient that may come from other rows. Scales are powers of two, which
# change no digit unless numbers are too small for float16.
_TOLERANCE = 1e-3


class OriginRecord(AttentionRecord):
    """The attention in a pass over one image, with the graph of its origin.

    Checkpoints have no effect, as their recomputation in a backward pass would not be recorded.

    Parameters
    ----------
    anyway : bool, default=False
        Whether graphs continue where the network ends them with ``detach()``, ``torch.no_grad()``
        or reentrant checkpoints. Code that leaves torch or writes into parameters then fails.

    Examples
    --------
    >>> import torch
    >>> from torch.nn.functional import scaled_dot_product_attention
    >>> from sklcam.networks.attention_origin import OriginRecord
    >>> tokens = torch.rand(1, 1, 4, 8, requires_grad=True)
    >>> for shift in (0, 1):
    ...     with OriginRecord() as record:
    ...         key = tokens.roll(shift, dims=2)
    ...         _ = scaled_dot_product_attention(tokens, key, tokens)
    ...     print(record.is_of_one_sequence(tokens))
    True
    False
    """

    def __init__(self, *, anyway: bool = False):
        super().__init__()
        self._anyway = anyway

    def clear(self) -> None:
        super().clear()
        self._runs: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        is_on = torch.is_grad_enabled() or self._anyway
        if self._anyway and func in (Tensor.detach, torch.detach):
            func = Tensor.clone
        # Detached, as a node that holds its own result would outlive the pass.
        with saved_tensors_hooks(Tensor.detach, _as_it_is), torch.set_grad_enabled(is_on):
            return super().__torch_function__(func, types, args, kwargs)

    def _note(self, weights: Tensor, result: Tensor, value: Tensor) -> Tensor:
        self._runs.append((weights, value, result))
        return super()._note(weights, result, value)

    def is_a_chain(self) -> bool:
        """Whether the input of each run of attention depends on the run before it.

        Returns
        -------
        bool
            Also True for runs without a graph, which would show the dependence.
        """
        nodes = [result.grad_fn for *_, result in self._runs]
        return all(
            earlier is None or later is None or earlier in _nodes_behind([later])
            for earlier, later in pairwise(nodes)
        )

    def is_of_one_sequence(self, images: Tensor) -> bool | None:
        """Whether the query, key and value of each token are made of one row of one tensor.

        Parameters
        ----------
        images : Tensor of shape (1, ...)
            The input of the pass, which requires a gradient.

        Returns
        -------
        bool or None
            Whether this holds for all runs; None if a run has no graph that leads to the images.
        """
        root = get_gradient_edge(images).node
        found = [_run_is_of_one_sequence(weights, value, root) for weights, value, _ in self._runs]
        return None if None in found else all(found)


def _run_is_of_one_sequence(weights: Tensor, value: Tensor, root: Node) -> bool | None:
    starts = [place for place in (_before_the_softmax(weights), _place_of(value)) if place]
    leading = _leading_to(root, _nodes_behind(node for node, _ in starts))
    made = [place for place in starts if place[0] in leading]
    if len(starts) < 2 or not made:
        return None
    # If queries and keys are both learned, their products do not depend on the images.
    if len(made) < 2 or weights.shape[-2] != weights.shape[-1]:
        return False
    return weights.shape[-1] == 1 or _is_row_by_row(
        made, weights, value, _nearest(made, leading, root)
    )


def _is_row_by_row(made: list[_Place], weights: Tensor, value: Tensor, origin: _Place) -> bool:
    products, values = made
    n_tokens = weights.shape[-1]
    scales = torch.stack([torch.ones(n_tokens), *_codes(n_tokens)]).to(weights)

    def gradient(of: _Place, like: Tensor, cotangents: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(
            [GradientEdge(*of)],
            [GradientEdge(*origin)],
            [cotangents.to(like).expand_as(like)],
            retain_graph=True,
        )
        return found.float()

    # A product on the diagonal is that of query i and key i. It and value i depend on row i alone
    # if scaling them scales the gradient of that row.
    scaled = [
        [gradient(products, weights, each.diag()) for each in scales],
        [gradient(values, value, each[:, None]) for each in scales],
    ]
    is_even = torch.arange(n_tokens, device=weights.device) % 2 == 0
    # Products of even queries and odd keys: both queries and keys must depend on the rows.
    apart = gradient(products, weights, is_even[:, None] & ~is_even)
    least = torch.finfo(value.dtype).tiny
    return any(
        all(_is_scaled([_rows(each, axes) for each in of], scales, least) for of in scaled)
        and _are_both_there(_rows(apart, axes), is_even)
        for axes in _axes_of(n_tokens, apart.shape)
    )


def _is_scaled(rows: list[Tensor], scales: Tensor, least: float) -> bool:
    most = _TOLERANCE * rows[0].abs().amax(dim=1) + least
    return all(
        bool(((each / scale[:, None] - rows[0]).abs().amax(dim=1) <= most).all())
        for each, scale in zip(rows, scales.float(), strict=True)
    )


def _are_both_there(rows: Tensor, is_even: Tensor) -> bool:
    is_there = rows.ne(0).any(dim=1)
    # Zero weights, as before training, leave no gradient of either.
    return bool(is_there[is_even].any() == is_there[~is_even].any())


def _codes(n_tokens: int) -> Iterator[Tensor]:
    """Yield powers of two for each token, so that no two tokens have the same sequence."""
    numbers = torch.arange(n_tokens)
    for i in count():
        yield 2.0 ** (numbers // 4**i % 4)
        if 4 ** (i + 1) >= n_tokens:
            return


def _axes_of(n_tokens: int, shape: torch.Size) -> Iterator[tuple[int, int]]:
    """Yield each range of axes that may hold the tokens."""
    for start, stop in combinations(range(len(shape) + 1), 2):
        if shape[start:stop].numel() == n_tokens:
            yield start, stop


def _rows(gradients: Tensor, axes: tuple[int, int]) -> Tensor:
    start, stop = axes
    shape = gradients.shape
    rows = gradients.reshape(shape[:start].numel(), shape[start:stop].numel(), -1)
    return rows.transpose(0, 1).flatten(1)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _place_of(tensor: Tensor) -> _Place | None:
    if not tensor.requires_grad:
        return None
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _before_the_softmax(weights: Tensor) -> _Place | None:
    node = weights.grad_fn
    while node is not None and not node.name().startswith("SoftmaxBackward"):
        node = node.next_functions[0][0] if node.next_functions else None  # a change of dtype
    return _places_before(node)[0] if node is not None and _places_before(node) else None


def _places_before(node: Node) -> list[_Place]:
    return [(before, i) for before, i in node.next_functions if before is not None]


def _nodes_behind(nodes: Iterable[Node]) -> set[Node]:
    """Return some nodes and all nodes that they depend on."""
    seen: set[Node] = set()
    ahead = [*nodes]
    while ahead:
        node = ahead.pop()
        if node not in seen:
            seen.add(node)
            ahead += [before for before, _ in _places_before(node)]
    return seen


def _leading_to(root: Node, nodes: set[Node]) -> set[Node]:
    """Return those nodes that depend on the root, and not on parameters alone."""
    leading = {root} & nodes
    # Nodes are numbered in the order of their creation, except leaves.
    for node in sorted(nodes, key=lambda node: node._sequence_nr()):
        if any(before in leading for before, _ in _places_before(node)):
            leading.add(node)
    return leading


def _nearest(places: list[_Place], leading: set[Node], root: Node) -> _Place:
    """Return the nearest place on all paths from some places to the root."""
    numbers, seen = count(), set(places)  # the numbers break ties, as nodes cannot be compared
    waiting: list[tuple[int, int, _Place]] = []

    def wait(place: _Place) -> None:
        age = 1 if place[0] is root else -place[0]._sequence_nr()
        heappush(waiting, (age, next(numbers), place))

    for place in seen:
        wait(place)
    while len(waiting) > 1:  # no other place depends on the one made last
        *_, (node, _) = heappop(waiting)
        for place in _places_before(node):
            if place[0] in leading and place not in seen:
                seen.add(place)
                wait(place)
    return waiting[0][2]
