"""``Reasons``: decisions explained by the names of the channels that weigh the most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils import Bunch

_PRINTED = 10  # images, of many


@dataclass(frozen=True, eq=False)
class Reasons(Sequence[Any]):
    r"""What speaks for each decision, and what against it, by the names of channels.

    Made by :meth:`~sklcam.CAMExplainer.explain_in_words`. Each entry, ``reasons[i]``, is a Bunch
    with the ``label`` that was explained, and ``positive`` and ``negative``: dicts of names to the
    sum of their channels' weights, the heaviest first.

    Parameters
    ----------
    labels : list of str or None
        The label that was explained for each image; None without classes.
    positive, negative : ndarray of shape (n_images, k), int64
        The channels with the highest and with the lowest weights, the most extreme first.
    positive_weights, negative_weights : ndarray of shape (n_images, k), float32
        Their :math:`\alpha_k`, or :math:`\alpha_k` times their mean activation.
    positive_names, negative_names : ndarray of shape (n_images, k), object
        Their names. None for a channel without a name, and for one whose weight is 0 or has the
        other sign: it does not speak for the decision, or does not speak against it.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.concepts import Reasons
    >>> reasons = Reasons(["fox"], np.array([[4, 7, 2]]), np.array([[1, 0, 9]]),
    ...                   np.array([[0.5, 0.25, 0.1]]), np.array([[-0.5, -0.2, 0.0]]),
    ...                   np.array([["fur", "fur", None]]), np.array([["sky", "sea", None]]))
    >>> reasons[0].positive
    {'fur': 0.75}
    >>> print(reasons)
    0, fox: for fur (0.75); against sky (-0.5), sea (-0.2)
    """

    labels: list[str] | None
    positive: np.ndarray
    negative: np.ndarray
    positive_weights: np.ndarray
    negative_weights: np.ndarray
    positive_names: np.ndarray
    negative_names: np.ndarray

    def __len__(self) -> int:
        return len(self.positive)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[row] for row in range(len(self))[i]]
        row = range(len(self))[i]
        return Bunch(
            label=None if self.labels is None else self.labels[row],
            positive=_totals(self.positive_names[row], self.positive_weights[row]),
            negative=_totals(self.negative_names[row], self.negative_weights[row]),
        )

    def __str__(self) -> str:
        lines = [_line(row, self[row]) for row in range(min(len(self), _PRINTED))]
        if len(self) > _PRINTED:
            lines.append(f"... {len(self)} images")
        return "\n".join(lines)


def _totals(names: np.ndarray, weights: np.ndarray) -> dict[Any, float]:
    totals: dict[Any, float] = {}
    for name, weight in zip(names.tolist(), weights.tolist(), strict=True):
        if name is not None:
            totals[name] = totals.get(name, 0.0) + weight
    return dict(sorted(totals.items(), key=lambda pair: -abs(pair[1])))


def _line(row: int, reason: Bunch) -> str:
    label = "" if reason.label is None else f", {reason.label}"
    parts = [
        f"{word} {', '.join(f'{name} ({weight:.2g})' for name, weight in totals.items())}"
        for word, totals in (("for", reason.positive), ("against", reason.negative))
        if totals
    ]
    return f"{row}{label}: {'; '.join(parts) or 'no channel with a name'}"
