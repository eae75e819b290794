"""ADCC and ARCC by the papers' numbers and a peer's formula; their terms by hand and NumPy."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pytorch_grad_cam.metrics import arcc as peer
from scipy.stats import hmean

from sklcam.metrics import (
    adcc,
    arcc,
    average_drop,
    average_increase,
    coherency,
    complexity,
    lp_norm,
    sparsity,
)

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


OTHERS = torch.rand(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# full, masked, drop = (full - masked) / full where that is positive, increase
@pytest.mark.parametrize(
    ("full", "masked", "drop", "increase"),
    [
        (0.8, 0.2, 0.75, 0),
        (0.5, 0.9, 0, 1),
        (0.5, 0.5, 0, 0),
        (0.25, 0, 1, 0),
        (1, 0.75, 0.25, 0),
        (0, 0, 0, 0),  # nothing to lose
        (0, 0.5, 0, 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_drop_and_increase_by_hand(full, masked, drop, increase, dtype):
    pair = torch.tensor([[full], [masked]], dtype=dtype)
    assert average_drop(*pair).item() == pytest.approx(drop, abs=torch.finfo(dtype).eps)
    assert average_increase(*pair).item() == increase
    assert average_drop(*pair).dtype == average_increase(*pair).dtype == dtype


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_constant_maps_explain_nothing(value):
    constant = torch.full((4, 6, 5), value)  # the mean of 30 tenths is not a tenth
    for pair in ((constant, constant), (constant, OTHERS.float()), (MAPS.float(), constant)):
        assert coherency(*pair).tolist() == [0] * 4
    terms = coherency(constant, constant), complexity(constant), torch.zeros(4)
    assert adcc(*terms).tolist() == [0] * 4
    assert sparsity(constant).tolist() == pytest.approx([0] * 4, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", [complexity, sparsity, lambda maps: coherency(maps, 1 - maps)])
def test_half_precision_at_the_papers_size(metric, dtype):
    """50176 pixels are more than a half can count."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 224, 224, generator=generator).to(dtype)
    expected = metric(maps.double())
    assert_allclose(metric(maps).double(), expected, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(1, 6, 5), (4, 1, 1), (4, 1, 7)])
def test_sizes(shape):
    maps = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    one_pixel = shape[1:] == (1, 1)
    assert coherency(maps, maps).tolist() == pytest.approx([0 if one_pixel else 1] * len(maps))
    for metric in (complexity, sparsity, lp_norm):
        assert metric(maps).shape == shape[:1]


def test_what_is_not_a_number_stays_so():
    """An average leaves it out; a zero would count."""
    maps = MAPS.clone()
    maps[1, 2, 3] = float("nan")
    nan = torch.tensor([False, True, False, False])
    for values in (coherency(maps, OTHERS), complexity(maps), sparsity(maps), lp_norm(maps)):
        assert values.isnan().equal(nan)
    terms = coherency(maps, OTHERS), complexity(maps), torch.full((4,), 0.25).double()
    assert adcc(*terms).isnan().equal(nan) and arcc(*terms).isnan().equal(nan)
    drop = average_drop(torch.tensor([0.5, 0.5]), torch.tensor([0.25, float("nan")]))
    assert drop[0] == 0.5 and drop[1].isnan()


OTHERS = torch.rand(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_complexity_is_the_mean_absolute_value(dtype):
    signed = (MAPS - OTHERS).to(dtype)
    assert_allclose(complexity(signed), np.abs(signed.numpy()).mean((1, 2)), rtol=1e-6)


def test_complexity_by_hand():
    maps = torch.tensor([[[0.0, 0.5], [1.0, 0.1]], [[-0.5, 0.5], [0.0, 0.0]]])
    torch.testing.assert_close(complexity(maps), torch.tensor([0.4, 0.25]))


def gini(values):
    """The mean absolute difference of all pairs, over twice the mean."""
    pairs = list(itertools.product(values, values))
    return sum(abs(a - b) for a, b in pairs) / len(pairs) / (2 * sum(values) / len(values))


def test_sparsity_is_the_gini_index():
    signed = MAPS - OTHERS
    expected = [gini([abs(value) for value in of.ravel().tolist()]) for of in signed.numpy()]
    assert_allclose(sparsity(signed), expected, atol=1e-12)
    assert_allclose(sparsity(-7 * signed), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0, 0, 0], 0),
        ([3, 3, 3, 3], 0),
        ([0, 0, 0, 5], 3 / 4),  # one of N: 1 - 1/N
        ([0, 0, 1, 1], 1 / 2),
        ([1, 2, 3, 4], 1 / 4),  # (-3 - 2 + 3 + 12) / (4 * 10)
    ],
)
def test_sparsity_by_hand(values, expected):
    assert sparsity(torch.tensor(values).view(1, 2, 2).float()).item() == pytest.approx(expected)


@pytest.mark.parametrize("p", [0, 1, 1.5, 2, 3, float("inf")])
def test_lp_norm_is_numpys(p):
    signed = torch.where(MAPS > 0.3, MAPS - OTHERS, 0.0)
    expected = [np.linalg.norm(of.ravel(), p) for of in signed.numpy()]
    assert_allclose(lp_norm(signed, p), expected, rtol=1e-12)


def test_lp_norm_of_no_norm():
    with pytest.raises(ValueError, match="p must be a finite number >= 0; got -1"):
        lp_norm(MAPS, -1)


def test_no_term_hides_what_is_not_a_number():
    """Not a zero, either: whether there is a drop, or a product, is unknown."""
    nan, some = torch.full((3,), torch.nan), torch.tensor([0.0, 0.5, 1.0])
    for metric in (average_drop, average_increase):
        assert metric(some, nan).isnan().all() and metric(nan, some).isnan().all()
    for metric in (adcc, arcc):
        for place in range(3):
            assert metric(*[some] * place, nan, *[some] * (2 - place)).isnan().all()


def test_the_floor_of_a_map_counts_in_its_sparsity():
    """Of 1 and 3, (2k - N - 1) m_k / (N sum m) is (3 - 1) / 8; of 0 and 1, as scaled, 1 / 2."""
    assert sparsity(torch.tensor([[[1.0, 3.0]], [[0.0, 1.0]]])).tolist() == [0.25, 0.5]
