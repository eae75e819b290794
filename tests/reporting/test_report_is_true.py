"""What a page is easily wrong about: classes of one name, NaN, a single image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pages import Page, X
from small_networks import SmallNet
from torch import nn

import sklcam
from sklcam import CAMExplainer
from sklcam.metrics import compare
from sklcam.networks import TargetLayer


def reported(tmp_path, estimator, *given, **options):
    path = tmp_path / "page.html"
    options = {"metrics": ("accuracy", "sparsity"), "verbose": 0, **options}
    return sklcam.report(estimator, *given, path, **options), path


def test_classes_of_one_name_are_two(tmp_path):
    explainer = CAMExplainer(SmallNet().eval(), image_size=16, verbose=0).fit()
    explainer.class_names_ = np.array(["crane", "crane", "crane"])  # as two of ImageNet's
    y = (explainer.predict(X[:6]) + 1) % 3
    result, path = reported(tmp_path, explainer, X[:6], y)
    assert result["accuracy"].sum() == 0
    page = Page(path)
    assert any("right on 0 of 6 images" in line for line in page.told)
    assert [each["right"] for each in page.data] == [[False]] * 6
    assert f"true: crane [{y[0]}]" in " ".join(page.cards[0].split())


def test_what_is_not_answered_is_neither_right_nor_wrong(tmp_path):
    class Silent(SmallNet):
        def forward(self, x):
            is_dark = x.amax((1, 2, 3)) == 0
            return super().forward(x).masked_fill(is_dark[:, None], torch.nan)

    explainer = CAMExplainer(Silent().eval(), image_size=8, mean=0, std=1, verbose=0).fit()
    y = [int(explainer.predict(X[:1])[0]), 0]
    with pytest.warns(UserWarning, match="NaN or inf"):
        result, path = reported(tmp_path, explainer, np.stack([X[0], 0 * X[0]]), y)
    np.testing.assert_array_equal(result["accuracy"], [1, np.nan])
    page = Page(path)
    assert [each["right"] for each in page.data] == [[True], [None]]
    assert any("(50\u00a0%), and its output is NaN on 1;" in line for line in page.told)
    assert "nan" not in page.cards[1] and "wrong" not in page.cards[1]


def test_the_grid_is_that_of_the_run_that_is_explained(tmp_path):
    class Shared(nn.Module):
        """A layer that runs twice, on 16 x 16 and on 8 x 8 places."""

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 2, stride=2)
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.second(self.act(self.first(x)))).mean((2, 3))

    options = {"image_size": 16, "mean": 0, "std": 1, "verbose": 0}
    for run, sides in ((0, "16 × 16"), (-1, "8 × 8")):
        layer = TargetLayer("act", run=run)
        explainer = CAMExplainer(Shared().eval(), target_layer=layer, **options).fit()
        _, path = reported(tmp_path, explainer, X[:2], None, metrics="sparsity")
        said = f"explained by GradCAM at the layer act, maps of {sides} places (CAMExplainer)"
        assert any(said in line for line in Page(path).told)
        network = explainer.adapter.network
        assert not any(module._forward_hooks for module in network.modules())
    _, path = reported(tmp_path, explainer, X[:2], None, metrics="sparsity", method="saliency")
    assert not any("places" in line for line in Page(path).told)  # it has no grid


def test_one_image_says_nothing_of_a_difference(tmp_path, fitted):
    models = {"a": fitted, "b": CAMExplainer(SmallNet().eval(), image_size=16, verbose=0).fit()}
    found, path = reported(tmp_path, models, X[:1], None, metrics="sparsity")
    page = Page(path)
    assert page.rows[1][-1] == "unknown"
    difference = compare(found["a"], found["b"])
    assert "the first is" not in f"{difference!r}"
    assert "unknown" in difference._repr_html_()
    assert not any("Compared with" in line for line in page.told)
    assert "1 images" not in path.read_text(encoding="utf-8")
