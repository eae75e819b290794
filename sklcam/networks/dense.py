"""Networks that predict for each pixel or each object: how to recognise and explain them.

Their last grid already holds the predictions for each place. The layer to explain is therefore the
last layer of the encoder, from which all predictions are made.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torchvision.models import detection, segmentation
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.segmentation._utils import _SimpleSegmentationModel

from sklcam.networks.dry_run import unwrap
from sklcam.networks.families import Family
from sklcam.networks.layer_search import find_target_layer
from sklcam.networks.layers import TargetLayer
from sklcam.networks.probing import Forward, taking_noise, trace

DenseTask = Literal["segmentation", "detection"]

_SEGMENTATION = (
    Family(_SimpleSegmentationModel, "backbone.-1"),  # FCN and DeepLabV3
    Family(segmentation.LRASPP, "backbone.-1"),
)
_OF_PYRAMIDS = (detection.generalized_rcnn.GeneralizedRCNN, detection.RetinaNet, detection.FCOS)
_N_SHOWN = 5


def dense_task(network: nn.Module) -> DenseTask | None:
    """Return whether a network is known to predict for pixels or objects; None if it is not.

    Parameters
    ----------
    network : nn.Module

    Returns
    -------
    {"segmentation", "detection"} or None

    Examples
    --------
    >>> from torch import nn
    >>> from sklcam.networks.dense import dense_task
    >>> dense_task(nn.Identity()) is None
    True
    """
    network = unwrap(network)
    if isinstance(network, (*_OF_PYRAMIDS, detection.ssd.SSD)):
        return "detection"
    if any(isinstance(network, each.kind) for each in _SEGMENTATION):
        return "segmentation"
    return "segmentation" if _is_of_transformers(network) else None


def _family_of(network: nn.Module) -> Family | None:
    """Return the family of a network whose layers are all convolutions, if it is a known one."""
    if any(isinstance(part, nn.LayerNorm | nn.MultiheadAttention) for part in network.modules()):
        return None
    backbone = getattr(network, "backbone", None)
    if isinstance(network, detection.ssd.SSD):
        # Each size of object has a resolution of its own; all are made from the first one.
        if isinstance(backbone, detection.ssd.SSDFeatureExtractorVGG):
            return Family(detection.ssd.SSD, "backbone.features")
        if isinstance(backbone, detection.ssdlite.SSDLiteFeatureExtractorMobileNet):
            return Family(detection.ssd.SSD, "backbone.features.0")
        return None
    for kind in _OF_PYRAMIDS:
        # All levels of the pyramid are made from the top of the body.
        if isinstance(network, kind) and isinstance(backbone, BackboneWithFPN):
            return Family(kind, "backbone.body.-1")
    return next((each for each in _SEGMENTATION if isinstance(network, each.kind)), None)


def _is_of_transformers(network: nn.Module) -> bool:
    return any(
        kind.__name__.endswith("ForSemanticSegmentation")
        and kind.__module__.startswith("transformers.")
        for kind in type(network).__mro__
    )


def find_dense_layer(
    model: nn.Module,
    target_layer: str | TargetLayer,
    *,
    sample: Tensor,
    forward: Forward,
) -> TargetLayer:
    """Find the layer to explain in a network that predicts for each pixel or object.

    Parameters
    ----------
    model : nn.Module
    target_layer : str or TargetLayer
        As in :func:`sklcam.networks.find_target_layer`. "auto" is the last layer of the encoder in
        torchvision's networks; for all others it raises an error that lists candidates.
    sample, forward
        As in :func:`sklcam.networks.find_target_layer`.

    Returns
    -------
    TargetLayer

    Raises
    ------
    ValueError
        As for ``find_target_layer``, and for "auto" if the network is not torchvision's.

    References
    ----------
    Vinogradova, Dibrov, Myers, "Towards Interpretable Semantic Segmentation via Gradient-Weighted
    Class Activation Mapping", AAAI 2020, section 2.

    Examples
    --------
    >>> import torch
    >>> from torchvision.models.segmentation import lraspp_mobilenet_v3_large
    >>> from sklcam.networks.dense import find_dense_layer
    >>> network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    >>> sample = torch.zeros(1, 3, 64, 64)
    >>> find_dense_layer(network, "auto", sample=sample, forward=network).name
    'backbone.16'
    """
    model, family = unwrap(model), _family_of(unwrap(model))
    if family is not None and family.is_plain(model):
        # All of its layers are convolutions and the operations between them.
        usual = family.usual_layer(model)
        if isinstance(target_layer, str) and target_layer != "auto":
            usual = TargetLayer(target_layer)
        given = target_layer if isinstance(target_layer, TargetLayer) else usual
        return find_target_layer(model, given, sample=sample, forward=forward)
    if dense_task(model) == "detection" and isinstance(target_layer, str):
        raise ValueError(
            f"The layers of this {type(model).__name__} are not known, as torchvision does not "
            "build it like this. Name the layer to explain and the layout of its output, as in "
            'TargetLayer("backbone.body.layer4", layout="nchw").'
        )
    if target_layer == "auto":
        listed = "; ".join(_candidates(model, sample, forward)) or "none that runs once"
        raise ValueError(
            f"Which layer of {type(model).__name__} to explain cannot be decided, as its output "
            "is itself a grid, and so are all layers before it. Name one with target_layer=, "
            "usually the last of the encoder. The last layer at each resolution, coarsest "
            f"first: {listed}."
        )
    return find_target_layer(model, target_layer, sample=sample, forward=forward)


def _candidates(model: nn.Module, sample: Tensor, forward: Forward) -> list[str]:
    """Return the last layer of each resolution as text, coarsest first."""
    last: dict[int, str] = {}
    output = trace(model, sample, taking_noise(model, sample, forward))
    for each in output.traced:
        if output.is_output(each):
            continue
        if len(each.shape) == 3:
            n_positions = each.shape[1]
        else:
            # Channels are taken to be first unless they are clearly last.
            n_positions = each.shape[-2] * each.shape[-1] if each.shape else 0
        last[n_positions] = f"{each.name!r}, of shape {each.shape}"
    return [last[n] for n in sorted(last) if n > 1][:_N_SHOWN]
