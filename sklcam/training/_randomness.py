"""Nets that draw from their own generators, swapped in while they are needed.

Networks, loaders and samplers draw from torch's global generators and cannot be told otherwise. So
these are set to the estimator's own state before training, and to the caller's again afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from skorch import NeuralNet
from torch import Tensor

from sklcam._validation import draw_seed
from sklcam.images.views import ViewSampler
from sklcam.images.warps import Warp
from sklcam.networks.dry_run import generators_lock
from sklcam.training._devices import DeviceNet

if TYPE_CHECKING:
    from sklcam.training._loading import LoadingNet


class SeededNet(DeviceNet):
    """A skorch net whose training is reproducible, and leaves the caller's generators alone.

    Attributes
    ----------
    random_states_ : dict
        The seed and the states of the generators: "global" and "cuda" are torch's, "views" is for
        views and augmentation. Views have their own generator, so that other draws, such as dropout
        masks, do not change them.
    generator_ : torch.Generator
        The one for views and augmentation, while it is in use.
    """

    random_state: int | np.random.RandomState | None
    random_states_: dict[str, Any]
    generator_: torch.Generator
    _is_restoring: bool = False

    def initialize_virtual_params(self) -> None:
        # The first of skorch's steps of initialization, even if a mixin replaces initialize.
        super().initialize_virtual_params()
        if not self._is_restoring:  # a file knows where the generators were
            self.random_states_ = self._seed()

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> Any:
        with self._own_randomness():
            return super().fit_loop(X, y, epochs, **kwargs)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        super().on_epoch_end(net, **kwargs)
        self._keep_states()  # callbacks may keep the net, to be trained on from here

    def _keep_states(self) -> None:
        on_cpu, *on_cuda = self.generator_states()
        self.random_states_ = {
            "seed": self.random_states_["seed"],
            "global": on_cpu,
            "cuda": on_cuda,
            "views": self.generator_.get_state(),
        }

    def _seed(self) -> dict[str, Any]:
        return self._seeded(self._draw_seed())

    def _draw_seed(self) -> int:
        if self.random_state is None:  # and the caller's global generator stays where it is
            return int(np.random.SeedSequence().generate_state(1, np.uint32)[0])
        return draw_seed(self.random_state)

    def _seeded(self, seed: int) -> dict[str, Any]:
        (views_seed,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)
        with generators_lock, torch.random.fork_rng(self._cuda_devices()):
            torch.manual_seed(seed)
            on_cpu, *on_cuda = self.generator_states()
            return {
                "seed": seed,
                "global": on_cpu,
                "cuda": on_cuda,
                "views": torch.Generator().manual_seed(int(views_seed) >> 1).get_state(),
            }

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Draw from the estimator's generators in the block, and keep their final states."""
        states = self.random_states_
        with self.generators_at([states["global"], *states["cuda"]]):
            self.generator_ = torch.Generator()
            self.generator_.set_state(states["views"])
            try:
                yield
            finally:
                self._keep_states()
                del self.generator_

    def generator_states(self) -> list[Tensor]:
        """Return the states of torch's generators: the CPU's and those of the devices in use."""
        devices = self._cuda_devices()
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]

    @contextmanager
    def generators_at(self, states: list[Tensor]) -> Iterator[None]:
        """Repeat the draws from these states in the block, then restore the present ones."""
        devices = self._cuda_devices()
        with generators_lock, torch.random.fork_rng(devices):
            torch.set_rng_state(states[0])
            for device, state in zip(devices, states[1:], strict=False):  # it may have moved since
                torch.cuda.set_rng_state(state, device)
            yield


@dataclass(frozen=True)
class Draws:
    """The draws of a step: its views, and repeats of the draws that its network has made.

    Parameters
    ----------
    net : LoadingNet
    sampler : ViewSampler
        The distribution of views.
    generator : torch.Generator or None
        What views are drawn from; None is torch's global one.
    """

    net: LoadingNet
    sampler: ViewSampler
    generator: torch.Generator | None

    def warp(self, n_images: int, size: tuple[int, ...]) -> Warp:
        """Draw a view of each image."""
        return self.sampler(n_images, size=size, generator=self.generator)

    def view(self, images: Tensor, warp: Warp) -> Tensor:
        """Return the views of images that have already been normalised."""
        return self.net.preprocessing_.view(images, warp)

    def states(self) -> list[Tensor]:
        """Return the states of torch's generators."""
        return self.net.generator_states()

    def at(self, states: list[Tensor]) -> AbstractContextManager[None]:
        """Repeat the draws from these states in the block, then restore the present ones."""
        return self.net.generators_at(states)
