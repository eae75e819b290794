"""Class activation maps: the methods, by name and as classes."""

from __future__ import annotations

from difflib import get_close_matches

from sklcam.cam.base import GradientMethod, min_max, upsample
from sklcam.cam.gradient import GradCAM
from sklcam.cam.targets import target_scores

__all__ = [
    "GradCAM",
    "GradientMethod",
    "available",
    "get_method",
    "min_max",
    "target_scores",
    "upsample",
]

_METHODS = {"gradcam": GradCAM}


def available() -> list[str]:
    """Return the names of the methods.

    Examples
    --------
    >>> from sklcam.cam import available
    >>> "gradcam" in available()
    True
    """
    return sorted(_METHODS)


def get_method(method: str | GradientMethod) -> GradientMethod:
    """Return the method of that name; a method object is returned as it is.

    Parameters
    ----------
    method : str or GradientMethod
        One of :func:`available`, in any case; or an object of one's own.

    Returns
    -------
    GradientMethod

    Raises
    ------
    ValueError
        If there is no such method; the message names the closest ones.

    Examples
    --------
    >>> from sklcam.cam import GradCAM, get_method
    >>> get_method("gradcam")
    GradCAM(relu=True)
    >>> get_method(GradCAM(relu=False))
    GradCAM(relu=False)
    """
    if isinstance(method, GradientMethod):
        return method
    if not isinstance(method, str):
        raise ValueError(
            f"method must be a name or a method object such as GradCAM(); got {method!r}."
        )
    if method.lower() not in _METHODS:
        close = get_close_matches(method.lower(), _METHODS, n=3) or available()
        raise ValueError(f"There is no method {method!r}. Did you mean: {', '.join(close)}?")
    return _METHODS[method.lower()]()
