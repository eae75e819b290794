"""Average drop and increase by hand, and what metrics of maps and confidences have in common."""

from __future__ import annotations

import warnings

import pytest
import torch
from numpy.testing import assert_allclose

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

MAPS = torch.rand(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


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
