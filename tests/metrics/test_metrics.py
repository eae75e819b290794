"""The metrics against equivariant toy networks and numbers worked by hand."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_validate
from small_networks import SmallNet, digits
from torch import nn

from sklcam import ConsistentCAMClassifier
from sklcam.cam import GradCAM, min_max, target_scores
from sklcam.metrics import complexity, consistency_score, get_scorer, ssim_consistency
from sklcam.networks import record
from sklcam.training import ViewSampler, Warp

X, Y = digits()


class Pointwise(nn.Module):
    """Equivariant to any warp: a linear map of each pixel's colour, then a mean."""

    def __init__(self, num_classes=3, in_channels=3):
        super().__init__()
        self.mix = nn.Conv2d(in_channels, 6, 1)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.head(self.mix(x).mean((2, 3)))


class Constant(Pointwise):
    """Its activations are the same everywhere, and so are its maps."""

    def forward(self, x):
        return self.head((self.mix(x * 0)).mean((2, 3)))


def unscaled_maps(model, images, target=None):
    with record(model, model.mix) as tape:
        return GradCAM(relu=False)(target_scores(model(images), target), tape.activations)


def classifier(module, **options):
    defaults = {"image_size": 16, "max_epochs": 0, "verbose": 0, "random_state": 0, "device": "cpu"}
    return ConsistentCAMClassifier(module, target_layer="mix", **{**defaults, **options})


def test_a_flip_of_an_equivariant_network_is_perfectly_consistent():
    torch.manual_seed(0)
    model, images = Pointwise(), torch.rand(4, 3, 24, 24)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(4, 1)
    flip = Warp.from_crops(whole, torch.tensor([True, True, False, True]))
    maps, of_view = (min_max(unscaled_maps(model, x)) for x in (images, flip(images)))
    torch.testing.assert_close(ssim_consistency(flip(maps), of_view), torch.ones(4))


def test_a_crop_is_too_for_the_shared_class_once_the_cropped_map_is_rescaled():
    torch.manual_seed(0)
    model, images = Pointwise(), torch.rand(4, 3, 24, 24)
    views = ViewSampler(scale=(0.1, 0.5))(4, size=(24, 24))
    classes = model(images).argmax(1)
    maps = min_max(unscaled_maps(model, images, classes))
    of_view = min_max(unscaled_maps(model, views(images), classes))
    torch.testing.assert_close(min_max(views(maps)), of_view, atol=1e-4, rtol=0)
    torch.testing.assert_close(ssim_consistency(min_max(views(maps)), of_view), torch.ones(4))
    assert (ssim_consistency(views(maps), of_view) < 1).all()  # as it is defined: not rescaled


def test_the_score_of_an_equivariant_network_on_flips_is_one():
    flips = ViewSampler(scale=(1, 1), ratio=(1, 1), flip=0.5)
    clf = classifier(Pointwise).fit(np.repeat(X[..., None], 3, 3), Y)
    assert consistency_score(clf, np.repeat(X[..., None], 3, 3), views=flips) == pytest.approx(1)


def test_constant_maps_count_as_zero_with_a_warning():
    maps = torch.rand(3, 16, 16)
    maps[1] = 0
    assert ssim_consistency(maps, maps).tolist() == pytest.approx([1, 0, 1])
    clf = classifier(Constant).fit(X, Y)
    with pytest.warns(UserWarning, match="60 of 60 images have a constant map"):
        assert consistency_score(clf, X) == 0


def test_the_score_by_hand_and_independent_of_the_batches():
    clf = classifier(SmallNet, max_epochs=2, lr=0.05).set_params(target_layer="5").fit(X, Y)
    inputs = torch.cat(list(clf.iter_inputs(X)))
    seed = int(np.random.RandomState(3).randint(2**31 - 1))
    views = ViewSampler()(60, size=(16, 16), generator=torch.Generator().manual_seed(seed))
    maps, _ = clf.explain_inputs(inputs, method=GradCAM(relu=False))
    of_view, _ = clf.explain_inputs(views(inputs), method=GradCAM(relu=False))
    expected = ssim_consistency(views(maps), of_view).mean().item()
    scores = [
        consistency_score(clf.set_params(batch_size=size), X, random_state=3) for size in (7, 60)
    ]
    assert scores == pytest.approx([expected, expected], abs=1e-6)
    assert consistency_score(clf, X) != pytest.approx(expected, abs=1e-3)  # another seed
    relu = consistency_score(clf, X, method="gradcam", random_state=3)
    assert relu != pytest.approx(expected, abs=1e-4)


def test_complexity_by_hand():
    maps = torch.tensor([[[0.0, 0.5], [1.0, 0.1]], [[-0.5, 0.5], [0.0, 0.0]]])
    torch.testing.assert_close(complexity(maps), torch.tensor([0.4, 0.25]))


def test_the_scorer_is_the_score_and_a_good_guest():
    clf = classifier(SmallNet, max_epochs=1).set_params(target_layer="5").fit(X, Y)
    scorer = get_scorer("consistency", random_state=5)
    for twin in (scorer, clone(scorer), pickle.loads(pickle.dumps(scorer))):
        assert twin(clf, X, Y) == consistency_score(clf, X, random_state=5)
    results = cross_validate(
        clf, X, Y, cv=2, scoring={"a": scorer, "accuracy": "accuracy"}, error_score="raise"
    )
    assert np.isfinite(results["test_a"]).all() and len(results["test_accuracy"]) == 2
    with pytest.raises(ValueError, match="consistency"):
        get_scorer("consistensy")


def test_scorers_route_metadata():
    from sklearn import config_context

    clf = classifier(SmallNet, max_epochs=1).set_params(target_layer="5")
    with config_context(enable_metadata_routing=True), warnings.catch_warnings():
        scorer = get_scorer("consistency")
        results = cross_validate(clf, X, Y, cv=2, scoring=scorer, params={})
    assert np.isfinite(results["test_score"]).all()
