"""Networks: by name or one's own, their weights, their target layers, and the tape that records them."""

from __future__ import annotations

from sklcam.networks.construction import check_output, construct
from sklcam.networks.layer_search import find_target_layer
from sklcam.networks.layers import TargetLayer
from sklcam.networks.tape import (
    Tape,
    Trunk,
    blocks_of_trunk,
    is_bypassed,
    record,
    record_trunk,
    stopping_after,
)
from sklcam.networks.weights import load_weights
from sklcam.networks.zoo import available_models, build_model

__all__ = [
    "Tape",
    "TargetLayer",
    "Trunk",
    "available_models",
    "blocks_of_trunk",
    "build_model",
    "check_output",
    "construct",
    "find_target_layer",
    "is_bypassed",
    "load_weights",
    "record",
    "record_trunk",
    "stopping_after",
]
