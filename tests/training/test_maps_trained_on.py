"""Which map the terms are about: by name, or by a method of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerated import LARGE as X
from accelerated import OneView, Y
from by_hand import (
    METHODS,
    classifier,
    explained,
    first_gradient,
    gradient_of,
    inconsistency,
    scaled,
    untrained,
)
from sklearn.model_selection import GridSearchCV
from torch.nn import functional as F

import sklcam
from sklcam.cam import GradCAM, GradCAMPlusPlus, GradientMethod, HiResCAM, LayerCAM, ScoreCAM

LABELS = torch.from_numpy(Y)
OPTIONS = {"alpha": 0.7, "beta": 1e-3, "views": OneView()}


class Squares(GradientMethod):
    def combine(self, activations, gradients):
        return (gradients * activations.square()).sum(1)


@pytest.mark.parametrize("more", [{}, {"memory": "low"}, {"batch_accumulation": 3}])
@pytest.mark.parametrize("name", METHODS)
def test_all_terms_are_about_the_map_that_is_asked_for(name, more):
    phi = Squares(relu=False) if name == "squares" else name
    clf, gradient = first_gradient(X, Y, phi=phi, **OPTIONS, **more)
    model, images = untrained(X, Y)
    warp = OneView()(len(images))
    logits, maps = explained(model, images, method=name)
    _, of_view = explained(model, warp(images), method=name)
    loss = F.cross_entropy(logits, LABELS) + 0.7 * inconsistency(maps, of_view, warp).mean()
    loss = loss + 1e-3 * scaled(maps).abs().sum((1, 2)).mean()
    assert clf.history[-1, "train_loss"] == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(gradient, gradient_of(loss, model), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(("name", "kind"), [("hirescam", HiResCAM), ("layercam", LayerCAM)])
def test_a_name_is_the_method_without_the_relu(name, kind):
    by_name, plain, with_relu = (
        first_gradient(X, Y, phi=phi, **OPTIONS)[1] for phi in (name, kind(relu=False), kind())
    )
    assert torch.equal(by_name, plain) and not torch.equal(by_name, with_relu)


def test_a_factor_of_half_precision_is_taken_out_again():
    """Grad-CAM++ of scores that are twice as high is not twice Grad-CAM++."""
    torch.manual_seed(0)
    activations = torch.rand(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    scores = activations.pow(3).mean((1, 2, 3))
    phi = GradCAMPlusPlus()
    expected, scaled_up = (
        phi(scores, activations, create_graph=True),
        phi(9 * scores, activations, create_graph=True),
    )
    assert not torch.allclose(scaled_up, expected) and not torch.allclose(scaled_up, 9 * expected)
    found = phi(9 * scores, activations, create_graph=True, factor=9)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *(
            torch.autograd.grad(m.sum(), activations, retain_graph=True)[0]
            for m in (found, expected)
        )
    )


def test_a_method_of_maps_without_a_gradient_is_refused():
    class Constant(GradientMethod):
        def combine(self, activations, gradients):
            return (gradients * activations).sum(1).detach()

    with pytest.raises(ValueError, match=r"phi=.* returns maps that cannot be differentiated"):
        classifier(phi=Constant(), alpha=1).fit(X, Y)


@pytest.mark.parametrize(
    "phi", ["scorecam", ScoreCAM(), HiResCAM, GradCAM(gradient="guided"), GradCAM(pooling="x"), 3]
)
def test_what_cannot_be_trained_on_is_refused_at_the_door(phi):
    clf = classifier(phi=phi)
    with pytest.raises(ValueError, match=r"phi|pooling"):
        clf.fit(X, Y)
    assert not clf.initialized_


def test_the_map_is_a_parameter_like_others(tmp_path):
    grid = {"phi": ["gradcam", "layercam", HiResCAM()]}
    search = GridSearchCV(classifier(alpha=0.1), grid, cv=2, error_score="raise").fit(X, Y)
    assert len(search.cv_results_["mean_test_score"]) == 3
    clf = classifier(phi=LayerCAM(relu=False), alpha=0.1).fit(X, Y)
    sklcam.save(clf, tmp_path / "clf.sklcam")
    loaded = sklcam.load(tmp_path / "clf.sklcam", objects={"Plain": type(clf.module_)})
    assert isinstance(loaded.phi, LayerCAM) and loaded.phi.relu is False
    np.testing.assert_array_equal(loaded.predict(X), clf.predict(X))
