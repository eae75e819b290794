"""Displays of volumes: a slice of each, the one in which the map is the highest."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import nn

import sklcam
from sklcam import (
    CAMDisplay,
    CAMExplainer,
    ConsistencyDisplay,
    LocalizationDisplay,
    ViewPairDisplay,
)

mpl.use("Agg")


class Bright(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv3d(1, 1, 1, bias=False)
        nn.init.ones_(self.layer.weight)

    def forward(self, volumes):
        hidden = self.layer(volumes).relu()
        return torch.stack([hidden.mean((1, 2, 3, 4)), hidden[:, :, :6].mean((1, 2, 3, 4))], dim=1)


@pytest.fixture
def fitted():
    X = torch.rand(3, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    for i, at in enumerate((2, 7, 11)):
        X[i, 0, at, 3, 4] = 5
    return CAMExplainer(Bright().eval(), target_layer="layer", verbose=0).fit(X), X


def test_the_slice_with_the_highest_map_is_drawn(fitted):
    explainer, X = fitted
    methods = ["gradcam", "scorecam"]
    display = CAMDisplay.from_estimator(explainer, X, [0, 1, 0], methods=methods, target=0)
    labels = ("true: 0", "true: 1", "true: 0")
    for title, label, at in zip(display.image_titles, labels, (2, 7, 11), strict=True):
        assert title.startswith(f"{label}\nslice {at} of 12\n")
    maps = explainer.explain(X, method=methods, target=0)
    for row, i in enumerate((2, 7, 11)):
        # The second method's map is of the same slice.
        for name in methods:
            np.testing.assert_allclose(display.maps[name][row], maps[name][row, i])
        scaled = (X[row, 0] - X[row].min()) / (X[row].max() - X[row].min())
        np.testing.assert_allclose(display.images[row], scaled[i], atol=1e-6)


def test_models_side_by_side_are_of_the_same_slice(fitted):
    explainer, X = fitted
    other = CAMExplainer(Bright().eval(), "uniform", target_layer="layer", verbose=0).fit(X)
    display = CAMDisplay.from_estimator({"one": explainer, "other": other}, X, target=0)
    # A blank or an even map of its own would have chosen another slice.
    assert display.image_titles == [f"slice {i} of 12" for i in (2, 7, 11)]
    assert set(display.maps) == {"one", "other"}


def test_other_displays_and_the_report_refuse_volumes(fitted, tmp_path):
    explainer, X = fitted
    with pytest.raises(ValueError, match="Volumes, of 12 x 12 x 12 voxels"):
        ViewPairDisplay.from_estimator(explainer, X)
    with pytest.raises(ValueError, match="Volumes, of 12 x 12 x 12 voxels"):
        LocalizationDisplay.from_estimator(explainer, X, boxes=[[[0, 0, 0, 2, 2, 2]]] * 3)
    with pytest.raises(ValueError, match="Volumes, of 12 x 12 x 12 voxels"):
        sklcam.report(explainer, X, path=tmp_path / "report.html", metrics="complexity")
    assert not (tmp_path / "report.html").exists()


def test_displays_of_numbers_take_volumes(fitted):
    explainer, X = fitted
    assert ConsistencyDisplay.from_estimator(explainer, X).figure_ is not None


def test_explainers_of_volumes_are_saved_and_read(fitted, tmp_path):
    explainer, X = fitted
    sklcam.save(explainer, tmp_path / "volumes.skl")
    read = sklcam.load(tmp_path / "volumes.skl", objects={"Bright": Bright})
    assert read.target_layers_ == explainer.target_layers_
    np.testing.assert_array_equal(read.explain(X), explainer.explain(X))
