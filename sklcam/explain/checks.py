"""Count maps and predictions that are blank or not finite, and warn about them."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from sklcam._callers import level_of_user

__all__ = ["ExplanationCheck", "ExplanationWarning", "checked"]


class ExplanationWarning(UserWarning):
    """Maps are blank, or maps or predictions are not finite, so they say nothing about the images.

    Examples
    --------
    If blank maps are expected, such as for classes that are not in the image, ignore the warning:

    >>> import warnings
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.explain import ExplanationWarning
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit()
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", ExplanationWarning)
    ...     maps = explainer.explain(torch.zeros(1, 2, 8, 8))
    >>> bool(maps.any())
    False
    """


def remark(map_: np.ndarray) -> str:
    """Return a label for the picture of a map that says nothing, or "" for any other map.

    Parameters
    ----------
    map_ : ndarray of shape (height, width)

    Returns
    -------
    str

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.explain.checks import remark
    >>> remark(np.zeros((7, 7))), remark(np.full((7, 7), np.nan)), remark(np.eye(7))
    ('no positive evidence', 'not finite', '')
    """
    if not np.isfinite(map_).all():
        return "not finite"
    return "" if np.max(map_) > 0 else "no positive evidence"


def checked(outputs: np.ndarray) -> np.ndarray:
    """Return outputs (n_images, ...), or values made from them. Warn if any is not finite."""
    check = ExplanationCheck()
    rows = torch.from_numpy(outputs.reshape(len(outputs), -1))
    check.add(rows, "outputs of the network", n_axes=1, blank=False)
    check.warn()
    return outputs


class ExplanationCheck:
    """Counts maps that are blank or not finite, batch after batch, and warns about them once.

    Examples
    --------
    >>> import torch
    >>> from sklcam.explain import ExplanationCheck
    >>> check = ExplanationCheck()
    >>> check.add(torch.zeros(2, 7, 7))
    >>> check.add(torch.full((1, 7, 7), torch.nan))
    >>> check.counts()
    {'maps': (2, 1, 3)}
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[Tensor, int]] = {}

    def add(
        self, values: Tensor, what: str = "maps", *, n_axes: int = 2, blank: bool = True
    ) -> None:
        """Count the blank and non-finite maps of a batch. The host waits only in ``counts``.

        Parameters
        ----------
        values : Tensor of shape (n_images, ..., height, width)
            Maps, scaled or not. Several maps of one image count separately. With another
            ``n_axes``, other values, such as the network's output.
        what : str, default="maps"
            A name for the values, for the message.
        n_axes : int, default=2
            How many of the last axes belong to one map: 3 if a map has a part for each channel.
        blank : bool, default=True
            Whether to count maps that are zero everywhere.
        """
        axes = tuple(range(-n_axes, 0))
        # The largest absolute value, or NaN if there is any, without the copy that abs() makes.
        peaks = torch.maximum(values.amax(axes), -values.amin(axes))
        counts = torch.stack([((peaks == 0) & blank).sum(), (~peaks.isfinite()).sum()])
        known, n_known = self._found.get(what, (0, 0))
        self._found[what] = known + counts, n_known + peaks.numel()

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """Return, for each kind of values, the numbers of blank, of non-finite and of all maps."""
        found = {}
        for what, (counts, n) in self._found.items():
            n_blank, n_wrong = counts.tolist()
            found[what] = n_blank, n_wrong, n
        return found

    def warn(self) -> None:
        """Give one warning if anything is blank or not finite."""
        counts = self.counts().items()
        blank = [f"{n_blank} of {n} {what}" for what, (n_blank, _, n) in counts if n_blank]
        wrong = [f"{n_wrong} of {n} {what}" for what, (_, n_wrong, n) in counts if n_wrong]
        message = []
        if wrong:
            message.append(
                f"{', '.join(wrong)} are NaN or infinite. Some of the network's weights are NaN or "
                "infinite too, or its activations overflow, as they may in half precision."
            )
        if blank:
            message.append(
                f"{', '.join(blank)} are blank: nothing in the image speaks for the target. "
                "Usually all weights are negative, so the ReLU leaves nothing (relu=False shows "
                "the evidence against the target), the layer has a single position, the network "
                "is saturated, or the image has no evidence."
            )
        if message:
            warnings.warn(" ".join(message), ExplanationWarning, stacklevel=level_of_user())
