"""Controls: maps that explain nothing, to compare methods and metrics with."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from sklcam._validation import draw_seed
from sklcam.cam.base import ChannelMethod, Method, RandomState
from sklcam.cam.recorded import RecordedPass


class Uniform(Method):
    """A map that is 1 everywhere. It is never scaled.

    Examples
    --------
    >>> from sklcam.cam import Uniform
    >>> Uniform().scaled
    False
    """

    uses_layers = False

    @property
    def scaled(self) -> bool:
        return False

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        shape = (*recorded.scores.shape, *recorded.size)
        return [torch.ones(shape, dtype=recorded.scores.dtype, device=recorded.images.device)]


class FakeCAM(Uniform):
    """Fake-CAM: 1 everywhere except in the top left pixel of the input. It is never scaled.

    The image times this map is almost the image itself, so the drop in confidence is close to 0
    although the map explains nothing.

    References
    ----------
    Poppi et al., "Revisiting the Evaluation of Class Activation Mapping", CVPRW 2021, section 3.1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import FakeCAM
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, method=FakeCAM(), target_layer="0", verbose=0)
    >>> images = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 0.0]]]])
    >>> explainer.fit().explain(images, target=0)
    array([[[0., 1.],
            [1., 1.]]], dtype=float32)
    """

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        (maps,) = super().explain(recorded)
        maps.flatten(2)[..., 0] = 0
        return [maps]


class RandomCAM(ChannelMethod):
    """Channels with random weights, uniform in [-1, 1].

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative values to zero.
    random_state : int, RandomState or None, default=None
        Seed of the weights. All images share the same weights, so a map does not depend on the
        batch.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import RandomCAM
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> method = RandomCAM(random_state=0)
    >>> explainer = CAMExplainer(network, method=method, target_layer="0", verbose=0).fit()
    >>> images = torch.rand(5, 2, 3, 3)
    >>> bool((explainer.explain(images, target=0) == explainer.explain(images, target=1)).all())
    True
    """

    def __init__(self, relu: bool = True, random_state: RandomState = None):
        super().__init__(relu)
        self.random_state = random_state

    def check(self) -> None:
        check_random_state(self.random_state)

    def channel_weights(self, recorded: RecordedPass) -> list[Tensor]:
        generator = np.random.default_rng(draw_seed(self.random_state))
        weights = []
        for layer in range(len(recorded.layers)):
            grid = recorded.grid(layer)
            # One draw for all images and classes, as a control depends on neither.
            drawn = torch.as_tensor(generator.uniform(-1, 1, grid.shape[1])).to(grid)
            weights.append(drawn.expand(*recorded.scores.shape, -1))
        return weights
