"""The adapter of nets trained here: it prepares images as they were prepared in training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from sklcam.images.dataset import ImageDataset
from sklcam.images.framed import FramedDataset, FramedItems, collate_framed
from sklcam.networks.adapters import Adapter, nonlinearity_of
from sklcam.networks.inputs import Inputs
from sklcam.networks.layers import TargetLayer
from sklcam.networks.preprocessing import Preprocessing
from sklcam.networks.readouts import Readout

if TYPE_CHECKING:
    from sklcam.training.net import ImageNeuralNet


class NetAdapter(Adapter):
    """Adapter of a fitted net, with its images, its loader and its nonlinearity.

    Parameters
    ----------
    net : ImageNeuralNet
    """

    def __init__(self, net: ImageNeuralNet):
        self.net = net

    @property
    def network(self) -> nn.Module:
        self.net.check_is_fitted()
        return self.net.module_

    def preprocessing(self, n_channels: int = 3) -> Preprocessing:
        return self.net.preprocessing_

    @property
    def labels(self) -> np.ndarray:  # type: ignore[override]
        return self.net.classes_inferred_

    @property
    def target_layer(self) -> TargetLayer:  # type: ignore[override]
        return self.net.target_layer_

    def dataset(self, X: Any) -> FramedDataset:
        return ImageDataset(X, **self.net.image_options())

    def loader(self, items: FramedItems) -> Iterable[Any]:
        loader = self.net.get_iterator(items, training=False)
        if not isinstance(loader, DataLoader):
            raise ValueError(
                f"iterator_valid is a {type(loader).__name__}, and images are explained and "
                "measured through a torch DataLoader. Leave it at DataLoader."
            )
        # Accelerate wraps loaders for nets with skorch's mixin; the inner one makes the batches.
        inside = getattr(loader, "base_dataloader", loader)
        if isinstance(inside.sampler, RandomSampler):
            raise ValueError(
                "iterator_valid shuffles, so maps and predictions would belong to other images. "
                "Leave iterator_valid__shuffle at False."
            )
        inside.collate_fn = collate_framed
        return loader

    def prepare(self, images: Tensor, dataset: FramedDataset) -> Tensor:
        return self.net.prepare_images(images)

    def blank(self) -> Tensor:
        parameter = next(self.network.parameters())
        size, n_channels = self.input_size, self.net.n_channels_
        return torch.zeros(1, n_channels, *size, device=parameter.device, dtype=parameter.dtype)

    def forward(self, inputs: Inputs) -> Tensor:
        return self.readout.columns(self.net.infer(inputs.images))

    @property
    def readout(self) -> Readout:  # type: ignore[override]
        return self.net.readout

    def probabilities(self, columns: Tensor) -> Tensor:
        if not self.readout.has_probabilities:
            return self.readout.probabilities(columns)  # an error that says so
        # A user's own function may make them.
        return nonlinearity_of(self.net)(self.readout.own(columns))
