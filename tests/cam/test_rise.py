"""RISE: equation 6 by hand, on a tiny network and on a detector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.transform import resize
from torch import Tensor, nn
from torchvision.ops import box_iou

import sklcam
from sklcam import CAMExplainer
from sklcam.cam import RISE, Box, Pixels


class Tiny(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


def tiny(size: tuple[int, int] = (9, 12)) -> nn.Module:
    torch.manual_seed(0)
    network = Tiny().eval()
    network(torch.zeros(1, 2, *size))
    return network


def images(n: int = 2, size: tuple[int, int] = (9, 12)) -> Tensor:
    return torch.randn(n, 2, *size, generator=torch.Generator().manual_seed(0))


def masks_by_hand(n: int, cells: int, p: float, size: tuple[int, int], seed: int) -> np.ndarray:
    """The authors' steps: cells that are shown or not, upsampled by skimage, and cropped."""
    generator = torch.Generator().manual_seed(seed)
    grids = (torch.rand(n, cells, cells, generator=generator) < p).double().numpy()
    sides = [int(np.ceil(side / cells)) for side in size]
    starts = [torch.randint(side, (n,), generator=generator).tolist() for side in sides]
    made = []
    for i, grid in enumerate(grids):
        large = resize(
            grid, [(cells + 1) * side for side in sides], 1, mode="edge", anti_aliasing=False
        )
        top, left = starts[0][i], starts[1][i]
        made.append(large[top : top + size[0], left : left + size[1]])
    return np.stack(made)


def seed_of(random_state: int) -> int:
    """What the library makes of an integer: the first number of its generator."""
    from sklcam._validation import draw_seed

    return draw_seed(random_state)


def test_equation_6_by_hand():
    network, X, n, p = tiny(), images(), 60, 0.4
    method = RISE(n, cells=4, p=p, random_state=3, batch_size=7)
    explainer = CAMExplainer(network, method, verbose=0).fit(X)
    masks = masks_by_hand(n, 4, p, (9, 12), seed_of(3))
    assert 0.3 < masks.mean() < 0.5
    for label in (0, 2):
        maps = explainer.explain(X, label, normalize=False)
        for image, map_ in zip(X, maps, strict=True):
            expected = np.zeros((9, 12))
            for mask in masks:
                with torch.no_grad():
                    shown = image * torch.from_numpy(mask).float()
                    probability = network(shown[None]).softmax(1)[0, label]
                expected += float(probability) * mask / (p * n)
            np.testing.assert_allclose(map_, expected, rtol=1e-4, atol=1e-6)


def test_of_what_has_no_probability_it_is_the_score():
    network, X = tiny(), images(1)
    method = RISE(20, cells=3, random_state=0)
    explainer = CAMExplainer(network, method, verbose=0).fit(X)
    masks = torch.from_numpy(masks_by_hand(20, 3, 0.5, (9, 12), seed_of(0))).float()
    with torch.no_grad():
        scores = network(X * masks[:, None])[:, 1]
    expected = torch.einsum("m,mhw->hw", scores, masks) / (0.5 * 20)
    maps = explainer.explain(X, lambda output: output[:, 1], normalize=False)
    np.testing.assert_allclose(maps[0], expected, rtol=1e-4, atol=1e-6)


def test_a_batch_is_its_images_one_by_one_whatever_the_batch_size():
    network, X = tiny(), images(5)
    explained = [
        CAMExplainer(network, RISE(30, random_state=1, batch_size=size), verbose=0)
        .fit(X)
        .explain(X, [[0, 1]] * 5)
        for size in (1, 8, None)
    ]
    assert explained[0].shape == (5, 2, 9, 12)
    for other in explained[1:]:
        np.testing.assert_allclose(other, explained[0], atol=1e-5)
    alone = (
        CAMExplainer(network, RISE(30, random_state=1), verbose=0).fit(X).explain(X[3:4], [[0, 1]])
    )
    np.testing.assert_allclose(alone[0], explained[0][3], atol=1e-5)


def test_no_graph_is_grown():
    network = tiny()
    grown = []
    network.register_forward_hook(lambda *args: grown.append(args[2].requires_grad))
    explainer = CAMExplainer(network, RISE(9, batch_size=2), verbose=0).fit(images())
    grown.clear()
    explainer.explain(images())
    assert len(grown) > 9
    assert not any(grown)


def test_it_finds_what_the_network_looks_at():
    class Corner(nn.Module):
        def forward(self, x):
            seen = x[:, 0, 8:, 8:].mean((1, 2))
            return torch.stack([16 * (seen - 0.5), torch.zeros_like(seen)], dim=1)

    X = torch.ones(1, 1, 16, 16)
    explainer = CAMExplainer(Corner(), RISE(500, cells=2, random_state=0), verbose=0).fit(X)
    (map_,) = explainer.explain(X, 0)
    means = [map_[:8, :8].mean(), map_[:8, 8:].mean(), map_[8:, :8].mean()]
    assert map_[8:, 8:].mean() > max(means) + 0.3


def test_it_explains_pixels_and_is_saved(tmp_path):
    network = nn.Conv2d(2, 3, 3, padding=1)
    method = RISE(8, cells=3, random_state=0)
    explainer = CAMExplainer(network, method, task="segmentation", verbose=0).fit(images())
    masks = torch.from_numpy(masks_by_hand(8, 3, 0.5, (9, 12), seed_of(0))).float()
    region = torch.zeros(9, 12)
    region[:4, :5] = 1
    with torch.no_grad():
        found = network(images(1) * masks[:, None]).softmax(1)[:, 2]
    expected = torch.einsum("m,mhw->hw", (found * region).sum((1, 2)), masks) / 4
    maps = explainer.explain(images(1), Pixels(2, region), normalize=False)
    np.testing.assert_allclose(maps[0], expected, rtol=1e-4, atol=1e-6)
    sklcam.save(CAMExplainer(tiny(), method, verbose=0).fit(images()), tmp_path / "rise")
    loaded = sklcam.load(tmp_path / "rise", objects={"Tiny": tiny()})
    assert loaded.method.get_params() == method.get_params()


def test_d_rise_by_hand():
    """The similarity is overlap x same label x score: of the classes, one score alone is known."""

    class Detector(nn.Module):
        """Two boxes; the scores are how bright the image is in them."""

        def forward(self, x):
            boxes = torch.tensor([[0.0, 0, 6, 9], [5, 0, 12, 9]])
            scores = torch.stack([x[0, :, :6].mean(), x[0, :, 5:].mean()]).sigmoid()
            return [boxes, scores, torch.tensor([1, 2])]

    from torchvision.models import detection

    class AsTorchvision(detection.FasterRCNN):
        def __init__(self):
            nn.Module.__init__(self)
            self.transform = detection.transform.GeneralizedRCNNTransform(
                9, 12, [0.0] * 2, [1.0] * 2
            )
            self.detector = Detector()

        def forward(self, xs):
            names = ("boxes", "scores", "labels")
            return [dict(zip(names, self.detector(x), strict=True)) for x in xs]

    X = images(1)
    method = RISE(25, cells=4, random_state=2)
    explainer = CAMExplainer(AsTorchvision().eval(), method, verbose=0).fit(X)
    box = torch.tensor([[1.0, 1, 7, 8]])
    masks = torch.from_numpy(masks_by_hand(25, 4, 0.5, (9, 12), seed_of(2))).float()
    boxes, *_ = Detector()(X[0])
    for label, j in ((1, 0), (2, 1)):
        similarities = [
            float(box_iou(box, boxes)[0, j] * Detector()(X[0] * m)[1][j]) for m in masks
        ]
        expected = np.einsum("m,mhw->hw", similarities, masks.numpy()) / (0.5 * 25)
        maps = explainer.explain(X, Box(box, [label]), normalize=False)
        np.testing.assert_allclose(maps[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (7, 10), (3, 3)])
def test_masks_cover_images_of_all_sizes(size):
    for cells in (2, 7):
        (masks,) = RISE(5, cells=cells, random_state=0).masks(size, 5, torch.device("cpu"))
        assert masks.shape == (5, *size)
        assert masks.min() >= 0
        assert masks.max() < 1 + 1e-6
