"""RISE: maps from the scores of images under random masks, for networks of any kind."""

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
    r"""RISE: the mean of random masks, each weighed by what the network says of the image under it.

    .. math:: S(\lambda) = \frac{1}{p N} \sum_{i=1}^{N} f(x \odot M_i)\, M_i(\lambda)

    No layer and no gradient is needed. :math:`f` is the probability of the class; of targets that
    have none, such as callables and proxies, the score. With :class:`Box` it is D-RISE, for
    detectors: there, f is how much what is detected under the mask is like the object.

    Parameters
    ----------
    n_samples : int, default=4000
        N, the number of masks; each costs a forward pass.
    cells : int, default=7
        How many cells a mask has along each side, before it is upsampled and shifted at random by
        less than a cell. D-RISE has 16.
    p : float in (0, 1), default=0.5
        The probability that a cell is shown.
    batch_size : int or None, default=None
        Most masked images that go through the network at a time; None is 10 of 224 x 224 pixels on
        a CPU, whose caches hold no more, 83 elsewhere, and more of smaller ones.
    random_state : int, RandomState or None, default=None
        Seed of the masks. Every image gets the same masks, so its map is the same in every
        batch.

    Notes
    -----
    Cells are as the authors' code has them, the image's side over ``cells``, rounded up: rounded
    down, as in the paper, the masks of some sizes would not cover the image. What is hidden is 0 in
    the network's input, its mean colour after the usual normalisation.

    The similarity of D-RISE is the product of the boxes' overlap, the cosine of the classes' scores
    and the objectness. torchvision's detectors return only the score of the detected class: the
    cosine is 1 for the same label and else 0, and the score, which has the objectness in it, takes
    the place of that. This is what ``Box`` scores.

    References
    ----------
    Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
    BMVC 2018, eq. 6 and section 3.2. Petsiuk et al., "Black-box Explanation of Object Detectors via
    Saliency Maps", CVPR 2021, eq. 1 to 5.

    Examples
    --------
    The first class is what shines at the left:

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
            raise ValueError(f"p must be between 0 and 1, and neither; got {self.p!r}.")
        check_batch_size(self.batch_size)
        check_random_state(self.random_state)

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        images, scores = recorded.images, recorded.scores
        recorded.prepare_inference()
        most = batch_size_for(images, self.batch_size)
        total = scores.new_zeros(*scores.shape, *recorded.size).detach()
        # All images under some masks at a time, so that a mask is made once.
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
        """Yield the masks, some at a time.

        Parameters
        ----------
        size : tuple of int
            Height and width of the images; of volumes, depth, height and width.
        n_at_once : int
        device : torch.device

        Yields
        ------
        Tensor of shape (n, height, width), in [0, 1]
        """
        # On the CPU, and all at once: neither the device nor the batches make a difference.
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
