"""RISE: maps from the scores of randomly masked images, for networks of any kind."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sklearn.utils import check_random_state
from torch import Tensor

from sklcam._validation import check_count, check_number, draw_seed
from sklcam.cam.base import Method, RandomState, batch_size_for, check_batch_size
from sklcam.cam.maps import upsample
from sklcam.cam.recorded import RecordedPass


class RISE(Method):
    r"""RISE: the mean of random masks, each weighted by the network's score of the masked image.

    .. math:: S(\lambda) = \frac{1}{p N} \sum_{i=1}^{N} f(x \odot M_i)\, M_i(\lambda)

    RISE needs neither a layer nor a gradient. :math:`f` is the probability of the class, or the
    score for targets without a probability, such as callables and proxies. With :class:`Box` the
    method is D-RISE, for detectors: f is then the similarity between the object and the detections
    in the masked image.

    Parameters
    ----------
    n_samples : int, default=4000
        N, the number of masks; each costs a forward pass.
    cells : int, default=7
        The number of cells along each side of a mask, before it is upsampled and shifted at random
        by less than a cell. D-RISE uses 16.
    p : float in (0, 1), default=0.5
        The probability that a cell is shown.
    batch_size : int or None, default=None
        The largest number of masked images that go through the network at a time. None is 10 images
        of 224 x 224 pixels on a CPU, as its caches hold no more, 83 elsewhere, and more if the
        images are smaller.
    random_state : int, RandomState or None, default=None
        Seed of the masks. All images share the same masks, so a map does not depend on the batch.

    Notes
    -----
    The side of a cell is that of the image divided by ``cells`` and rounded up, as in the authors'
    code. Rounded down, as in the paper, masks of some sizes would not cover the image. Hidden
    pixels are 0 in the network's input, which is the mean colour after the usual normalisation.

    The similarity of D-RISE is the product of the boxes' overlap, the cosine of the class scores
    and the objectness. torchvision's detectors return only the score of the detected class. The
    cosine is therefore 1 for the same label and 0 otherwise, and the score, which includes the
    objectness, replaces the objectness. This is the score of ``Box``.

    References
    ----------
    Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
    BMVC 2018, eq. 6 and section 3.2. Petsiuk et al., "Black-box Explanation of Object Detectors via
    Saliency Maps", CVPR 2021, eq. 1 to 5.

    Examples
    --------
    The first class depends only on the pixel on the left:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import RISE
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> _ = network[1].weight.data.copy_(torch.tensor([[4.0, 0, 0, 0], [0, 0, 0, 0]]))
    >>> explainer = CAMExplainer(network, RISE(100, cells=4, random_state=0), verbose=0)
    >>> images = torch.ones(1, 1, 1, 4)
    >>> explainer.fit(images).explain(images, target=0).argmax()
    np.int64(0)
    """

    uses_layers = False

    def __init__(
        self,
        n_samples: int = 4000,
        cells: int = 7,
        p: float = 0.5,
        batch_size: int | None = None,
        random_state: RandomState = None,
    ):
        self.n_samples = n_samples
        self.cells = cells
        self.p = p
        self.batch_size = batch_size
        self.random_state = random_state

    def check(self) -> None:
        check_count("n_samples", self.n_samples)
        check_count("cells", self.cells)
        check_number("p", self.p, 0, 1)
        if not 0 < self.p < 1:
            raise ValueError(f"p must be greater than 0 and less than 1; got {self.p!r}.")
        check_batch_size(self.batch_size)
        check_random_state(self.random_state)

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        images, scores = recorded.images, recorded.scores
        recorded.prepare_inference()
        most = batch_size_for(images, self.batch_size)
        total = scores.new_zeros(*scores.shape, *recorded.size).detach()
        # All images see the same few masks at a time, so that each mask is made only once.
        for masks in self.masks(recorded.size, max(1, most // len(images)), images.device):
            every = torch.arange(len(masks) * len(images), device=images.device)
            found = torch.cat(
                [
                    self._under(recorded, masks, part // len(images), part % len(images))
                    for part in every.split(most)
                ]
            )
            weights = found.reshape(len(masks), *scores.shape).to(total)
            total += torch.einsum("mnk,m...->nk...", weights, masks.to(total))
        return [total / (self.p * self.n_samples)]

    def _under(self, recorded: RecordedPass, masks: Tensor, shown: Tensor, rows: Tensor) -> Tensor:
        images = recorded.images[rows]  # a copy
        output = recorded.run(images.mul_(masks[shown][:, None].to(images.dtype)), rows)
        return recorded.confidence(output, rows)

    def masks(
        self, size: tuple[int, ...], n_at_once: int, device: torch.device
    ) -> Iterator[Tensor]:
        """Yield the masks, a few at a time.

        Parameters
        ----------
        size : tuple of int
            Height and width of the images, or depth, height and width of volumes.
        n_at_once : int
        device : torch.device

        Yields
        ------
        Tensor of shape (n, height, width), in [0, 1]
        """
        # Drawn on the CPU and all at once, so that they depend on neither the device nor batches.
        generator = torch.Generator().manual_seed(draw_seed(self.random_state))
        axes, sides = [self.cells] * len(size), [-(-side // self.cells) for side in size]
        grids = (torch.rand(self.n_samples, *axes, generator=generator) < self.p).float()
        starts = torch.stack(
            [torch.randint(side, (self.n_samples,), generator=generator) for side in sides], dim=1
        ).tolist()
        whole = tuple((self.cells + 1) * side for side in sides)
        for first in range(0, self.n_samples, n_at_once):
            chosen = slice(first, first + n_at_once)
            large = upsample(grids[chosen].to(device)[:, None], whole)[:, 0]
            yield torch.stack(
                [
                    each[tuple(slice(s, s + side) for s, side in zip(start, size, strict=True))]
                    for each, start in zip(large, starts[chosen], strict=True)
                ]
            )
