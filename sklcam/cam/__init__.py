"""Class activation maps: the methods, by name and as classes."""

from __future__ import annotations

from inspect import isabstract
from typing import cast

from sklcam._validation import suggestion
from sklcam.cam.asked import target_scores
from sklcam.cam.attention import AttentionRelevance, LeGrad, Rollout
from sklcam.cam.base import ChannelMethod, GradientMethod, Method, WeightedGradientMethod
from sklcam.cam.baselines import FakeCAM, RandomCAM, Uniform
from sklcam.cam.detections import Box
from sklcam.cam.eigen import EigenCAM, EigenGradCAM
from sklcam.cam.faster import FasterScoreCAM, GroupCAM, ReciproCAM
from sklcam.cam.finer import Finer, FinerCAM
from sklcam.cam.gradient import (
    CAM,
    Counterfactual,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    SmoothGradCAMPlusPlus,
    XGradCAM,
)
from sklcam.cam.maps import min_max, upsample
from sklcam.cam.perturbation import ISCAM, SSCAM, AblationCAM, PerturbationMethod, ScoreCAM
from sklcam.cam.pixel import (
    Deconvnet,
    ExcitationBackprop,
    GuidedBackprop,
    GuidedGradCAM,
    Occlusion,
    Saliency,
)
from sklcam.cam.recorded import RecordedPass
from sklcam.cam.regions import Pixels
from sklcam.cam.rise import RISE
from sklcam.cam.targets import (
    Classes,
    Deferred,
    Directions,
    Positive,
    Target,
    TopK,
)

__all__ = [
    "CAM",
    "ISCAM",
    "RISE",
    "SSCAM",
    "AblationCAM",
    "AttentionRelevance",
    "Box",
    "ChannelMethod",
    "Classes",
    "Counterfactual",
    "Deconvnet",
    "Deferred",
    "Directions",
    "EigenCAM",
    "EigenGradCAM",
    "ExcitationBackprop",
    "FakeCAM",
    "FasterScoreCAM",
    "Finer",
    "FinerCAM",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradientMethod",
    "GroupCAM",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "LayerCAM",
    "LeGrad",
    "Method",
    "Occlusion",
    "PerturbationMethod",
    "Pixels",
    "Positive",
    "RandomCAM",
    "ReciproCAM",
    "RecordedPass",
    "Rollout",
    "Saliency",
    "ScoreCAM",
    "SmoothGradCAMPlusPlus",
    "Target",
    "TopK",
    "Uniform",
    "WeightedGradientMethod",
    "XGradCAM",
    "available",
    "get_method",
    "min_max",
    "target_scores",
    "upsample",
]

_METHODS: dict[str, type[Method]] = {
    "ablationcam": AblationCAM,
    "attentionrelevance": AttentionRelevance,
    "cam": CAM,
    "counterfactual": Counterfactual,
    "deconvnet": Deconvnet,
    "eigencam": EigenCAM,
    "eigengradcam": EigenGradCAM,
    "excitationbackprop": ExcitationBackprop,
    "fakecam": FakeCAM,
    "fasterscorecam": FasterScoreCAM,
    "finercam": FinerCAM,
    "gradcam": GradCAM,
    "gradcam++": GradCAMPlusPlus,
    "groupcam": GroupCAM,
    "guidedbackprop": GuidedBackprop,
    "guidedgradcam": GuidedGradCAM,
    "hirescam": HiResCAM,
    "iscam": ISCAM,
    "layercam": LayerCAM,
    "legrad": LeGrad,
    "occlusion": Occlusion,
    "randomcam": RandomCAM,
    "reciprocam": ReciproCAM,
    "rise": RISE,
    "rollout": Rollout,
    "saliency": Saliency,
    "scorecam": ScoreCAM,
    "smoothgradcam++": SmoothGradCAMPlusPlus,
    "sscam": SSCAM,
    "uniform": Uniform,
    "xgradcam": XGradCAM,
}


def available() -> list[str]:
    """Return the names of the methods.

    Examples
    --------
    >>> from sklcam.cam import available
    >>> "gradcam" in available()
    True
    """
    return sorted(_METHODS)


def get_method(method: str | Method | type[Method]) -> Method:
    """Return the method with this name. A method object is returned unchanged.

    Parameters
    ----------
    method : str, Method or class of methods
        A name from :func:`available`, in upper or lower case; a method object with its options; or
        a class, for its default options.

    Returns
    -------
    Method

    Raises
    ------
    ValueError
        If there is no such method; the message names the closest ones.

    Examples
    --------
    >>> from sklcam.cam import GradCAM, get_method
    >>> get_method("gradcam")
    GradCAM()
    >>> get_method(GradCAM(relu=False))
    GradCAM(relu=False)
    """
    if isinstance(method, Method):
        return cast(Method, method)
    if isinstance(method, type):
        return _of_class(method)
    if not isinstance(method, str):
        raise ValueError(
            f"method must be a name or a method object such as GradCAM(); got {method!r}."
        )
    if method.lower() not in _METHODS:
        raise ValueError(f"There is no method {method!r}. {suggestion(method.lower(), _METHODS)}")
    return _METHODS[method.lower()]()


def _of_class(method: type) -> Method:
    if not issubclass(method, Method):
        raise ValueError(
            f"{method.__name__} is not a method class. Derive it from sklcam.cam.Method."
        )
    if isabstract(method):
        raise ValueError(
            f"{method.__name__} is a base class. Derive your own method from it, or choose one of "
            f"{', '.join(available())}."
        )
    return method()
