"""Networks: names, weights, target layers, what they are called with, and the tape."""

from __future__ import annotations

from sklcam.networks.adapters import Adapter, Preparation, adapt
from sklcam.networks.construction import check_output, construct
from sklcam.networks.inputs import Inputs
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
    "Adapter",
    "Inputs",
    "Preparation",
    "Tape",
    "TargetLayer",
    "Trunk",
    "adapt",
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
