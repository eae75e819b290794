"""Networks: their sources, their inputs, their layers, and the tape."""

from __future__ import annotations

from sklcam.networks.adapters import Adapter, Preparation, adapt
from sklcam.networks.construction import available_models, build_model, construct
from sklcam.networks.dry_run import check_output
from sklcam.networks.inputs import Inputs
from sklcam.networks.layer_search import find_target_layer
from sklcam.networks.layers import TargetLayer
from sklcam.networks.preprocessing import Origin, Preprocessing
from sklcam.networks.sources import origin_of
from sklcam.networks.tape import Tape, record, stopping_after
from sklcam.networks.trunk import Trunk, blocks_of_trunk, is_bypassed, record_trunk
from sklcam.networks.weights import load_weights

__all__ = [
    "Adapter",
    "Inputs",
    "Origin",
    "Preparation",
    "Preprocessing",
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
    "origin_of",
    "record",
    "record_trunk",
    "stopping_after",
]
