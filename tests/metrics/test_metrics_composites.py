"""ADCC and ARCC: the papers' numbers, the harmonic mean, and a peer's formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pytorch_grad_cam.metrics import arcc as peer
from scipy.stats import hmean

from sklcam.metrics import adcc, arcc, coherency, complexity

# Poppi et al., table 2, all that is printed: average drop, coherency, complexity, ADCC (in %).
TABLE_2 = {
    "VGG-16": """
        0.15 100.00 100.00 0.01
        66.42 69.20 15.65 53.52
        73.84 66.69 13.68 46.29
        32.88 89.34 26.33 75.65
        36.72 82.68 28.09 71.72
        26.13 93.83 20.27 81.66
    """,
    "ResNet-18": """
        0.24 100.00 100.00 0.01
        42.90 81.03 23.04 69.98
        17.85 98.18 44.63 74.24
        20.67 97.53 43.11 74.20
        12.81 98.35 41.78 77.30
    """,
    "ResNet-50": """
        0.38 100.00 100.00 0.01
        32.99 82.80 22.24 75.27
        12.82 97.84 43.99 75.86
        15.21 97.47 42.25 76.19
        8.61 98.12 42.05 78.14
    """,
    "ResNet-101": """
        0.36 100.00 100.00 0.01
        29.38 81.97 22.51 76.40
        11.38 98.28 43.94 76.34
        13.37 97.76 42.61 76.54
        7.20 98.37 42.04 78.55
    """,
    "ResNeXt-50": """
        0.34 100.00 100.00 0.01
        28.06 82.72 25.57 76.09
        11.12 97.30 48.66 73.16
        12.70 97.32 47.48 73.58
        7.20 98.00 46.86 75.38
    """,
    "ResNeXt-101": """
        0.26 100.00 100.00 0.01
        24.12 82.94 25.45 77.62
        9.74 95.05 46.27 74.61
        9.49 96.81 49.24 73.03
        5.37 97.03 46.83 75.60
    """,
}


ROWS = [
    pytest.param([float(number) / 100 for number in line.split()], id=f"{backbone}-{i}")
    for backbone, text in TABLE_2.items()
    for i, line in enumerate(text.strip().splitlines())
]


METHODS = [row for row in ROWS if not row.id.endswith("-0")]


MAPS = torch.rand(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


OTHERS = torch.rand(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_fake_cam_at_the_papers_size():
    fake = torch.ones(1, 224, 224)
    fake[:, 0, 0] = 0
    terms = coherency(fake, fake), complexity(fake), torch.tensor([0.0])
    assert terms[0].item() == pytest.approx(1, abs=1e-6)
    # The mean of 50,000 values near 1 in float32 is a few roundings off, and so is 1 less it.
    rounding = 4 * torch.finfo(torch.float32).eps
    assert terms[1].item() == pytest.approx(1 - 1 / 50176, abs=rounding)
    assert adcc(*terms).item() == pytest.approx(3 / (1 + 50176 + 1), rel=50176 * rounding)


def test_the_papers_table_has_25_rows_of_true_methods_and_fakes():
    assert len(METHODS) == 25 and len(ROWS) == 31


@pytest.mark.parametrize("row", ROWS)
def test_adcc_is_the_papers_of_the_averages(row):
    drop, coherency_, complexity_, expected = torch.tensor(row, dtype=torch.float64)
    # FakeCAM's complexity is printed as 100 %, which is 1 - 1/50176.
    complexity_ = torch.where(complexity_ == 1, 1 - 1 / 50176, complexity_)
    value = adcc(coherency_, complexity_, drop)
    assert value.item() == pytest.approx(expected.item(), abs=5e-4)


def test_adcc_is_the_harmonic_mean():
    terms = MAPS.flatten()[:30].reshape(3, 10)
    expected = hmean([terms[0], 1 - terms[1], 1 - terms[2]], axis=0)
    assert_allclose(adcc(*terms), expected, rtol=1e-12)


@pytest.mark.parametrize("terms", [(0, 0.5, 0.5), (0.5, 1, 0.5), (0.5, 0.5, 1), (0, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_adcc_is_zero_where_a_term_is(terms, dtype):
    assert adcc(*torch.tensor(terms, dtype=dtype)).item() == 0


def test_adcc_by_hand():
    # 3 / (1/1 + 1/0.5 + 1/0.25) = 3/7
    assert adcc(*torch.tensor([1, 0.5, 0.75])).item() == pytest.approx(3 / 7)


@pytest.mark.parametrize("road", [-0.5, -0.1, 0, 0.1, 0.25, 0.5])
def test_arcc_is_the_peers(road, monkeypatch):
    """Its formula has 1e-8 in the denominators; its map of the masked image and ROAD are given."""
    metric = peer.ARCC(base_method=lambda input_tensor, targets: OTHERS.numpy())
    monkeypatch.setattr(metric, "road", lambda *_: np.full(4, road))
    expected = metric(torch.zeros(4, 1, 6, 5), MAPS.numpy(), None, None)
    ours = arcc(coherency(MAPS, OTHERS), complexity(MAPS), torch.full((4,), road).double())
    assert_allclose(ours, expected, atol=1e-7)
