"""Networks of open_clip: how their images are prepared, as the networks themselves say."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sklcam._validation import check_size
from sklcam.images.frames import Resizing
from sklcam.networks.preprocessing import Origin, Preprocessing

_MODES = {"shortest": "center_crop", "longest": "pad", "squash": "stretch"}


def origin_of_open_clip(network: nn.Module) -> Origin | None:
    """Return how a network of open_clip takes its images; None for any other network.

    Parameters
    ----------
    network : nn.Module

    Returns
    -------
    Origin or None
    """
    says = getattr(getattr(network, "visual", network), "preprocess_cfg", None)
    if not isinstance(says, Mapping) or not {"size", "mean", "std"} <= says.keys():
        return None
    mode, fill = says.get("resize_mode", "shortest"), says.get("fill_color", 0)
    if mode not in _MODES:
        return Origin(Preprocessing.unsettled(f"open_clip, resize_mode={mode!r}"))
    size = says["size"]
    return Origin(
        Preprocessing(
            image_size=check_size(size if isinstance(size, int) else tuple(size), "image_size"),
            resizing=Resizing(
                _MODES[mode],  # type: ignore[arg-type]
                interpolation=says.get("interpolation", "bicubic"),
                fill=(fill / 255,),
            ),
            mean=tuple(says["mean"]),
            std=tuple(says["std"]),
            source="open_clip's preprocess_cfg",
        )
    )
