"""Networks of torchvision, by name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from sklcam._validation import suggestion
from sklcam.images.frames import Resizing
from sklcam.networks.from_efficientnet_lite import names as names_of_lite
from sklcam.networks.named import AnyWeights, Source
from sklcam.networks.preprocessing import Origin, Preprocessing
from sklcam.networks.weights import fill, find_weights, n_classes_in, redraw_stem

_USUAL_SIZE = (224, 224)


class TorchvisionSource(Source):
    """A network of torchvision; upper and lower case are the same."""

    def __init__(self, name: str):
        known = names()
        self.name = name.lower()
        if self.name not in known:
            similar = suggestion(self.name, [*known, *names_of_lite()])
            raise ValueError(
                f"Unknown model {name!r}. {similar} available_models() lists all names of "
                "torchvision and EfficientNet-Lite. Other names begin with their source, such as "
                '"timm/resnet50" or "transformers/google/vit-base-patch16-224". For any other '
                "network, pass an nn.Module, its class or a callable that returns one."
            )

    def build(
        self,
        n_classes: int | None,
        in_channels: int,
        image_size: tuple[int, int] | None,
        weights: AnyWeights,
        options: dict[str, Any],
    ) -> nn.Module:
        source = None if weights is None else find_weights(self.name, weights)
        origin = self.origin(weights)
        is_open = n_classes is None
        if n_classes is None:
            n_classes = len(origin.class_names or range(1000))
        if image_size is None:
            height, width = origin.preprocessing.image_size
            image_size = height, width
        fixed = {**_builder_options(self.name, in_channels, image_size), **options}
        if isinstance(source, Path) and is_open:
            with torch.device("meta"):
                like = models.get_model(self.name, weights=None, **fixed)
            n_classes = n_classes_in(source, like) or n_classes
        # Without weights, as torchvision's builders insist on the head that their weights have.
        model = models.get_model(self.name, weights=None, num_classes=n_classes, **fixed)
        model.built_as = {  # so that a file can name it
            **{"name": self.name, "n_classes": n_classes, "in_channels": in_channels},
            **{"image_size": image_size, **options},
        }
        if in_channels != 3:
            redraw_stem(model, in_channels)
        if source is not None:
            fill(model, source)
        return model

    def origin(self, weights: AnyWeights) -> Origin:
        source = None if weights is None else find_weights(self.name, weights)
        if not isinstance(source, WeightsEnum):
            return Origin()  # a file does not say what it was trained on
        names = source.meta.get("categories")
        return Origin(_read(source), None if names is None else tuple(names))


def names() -> list[str]:
    """Return the names of the classification networks of the installed torchvision, sorted."""
    return models.list_models(module=models)


def is_builder(function: Any) -> bool:
    """Whether a function, or a partial of one, is torchvision's builder, without weights."""
    inner = function.func if isinstance(function, partial) else function
    if not str(getattr(inner, "__module__", "")).startswith("torchvision.models"):
        return False
    given = function.keywords if isinstance(function, partial) else {}
    name = getattr(inner, "__name__", "")
    is_known = name in names() and models.get_model_builder(name) is inner
    return is_known and given.get("weights") is None and not given.get("pretrained")


def _read(weights: WeightsEnum) -> Preprocessing:
    transform = weights.transforms()
    if not hasattr(transform, "resize_size"):
        return Preprocessing()
    crop, scaled = transform.crop_size[0], transform.resize_size[0]
    # Just under the quotient, so that the size is right to the pixel.
    fraction = 1.0 if crop == scaled else crop / (scaled + 1e-6)
    return Preprocessing(
        image_size=(crop, crop),
        resizing=Resizing("center_crop", fraction, transform.interpolation.value),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        source=f"torchvision's transforms of {weights}",
    )


def _builder_options(name: str, in_channels: int, image_size: tuple[int, int]) -> dict[str, Any]:
    if name in ("googlenet", "inception_v3"):
        # Torchvision warns when init_weights is left to its default.
        return {"aux_logits": False, "init_weights": True, "transform_input": in_channels == 3}
    if name.startswith("vit_"):
        return {"image_size": _patchable_side(name, image_size)}
    if name.startswith("maxvit"):
        return {"input_size": tuple(image_size)}
    return {}


def _patchable_side(name: str, image_size: tuple[int, int]) -> int:
    patch = int(name.rsplit("_", 1)[-1])  # torchvision ends the name with it: vit_b_16
    height, width = image_size
    if height == width and height > 0 and height % patch == 0:
        return height
    side = patch * max(1, round(min(height, width) / patch))
    raise ValueError(
        f"{name} takes square images whose side is a multiple of {patch}; got "
        f"image_size={tuple(image_size)}. Use ({side}, {side}), for example."
    )
