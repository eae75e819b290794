"""TripletCAM: against the gradients of triplet losses by hand, and the map of the nearest image."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
import torch
from embedders import IMAGES, LABELS, N, embeddings_of, explainer, network, trunk_of
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from torch import nn

from sklcam import CAMExplainer
from sklcam.embeddings import TripletCAM


@pytest.fixture(scope="module")
def fitted():
    return explainer().fit(IMAGES, LABELS)


def triplet_weights(model, anchor, margin):
    """Minus the mean gradient of an anchor's triplet losses that are positive, by autograd."""
    trunk, head = trunk_of(model), nn.Sequential(*list(model)[6:])
    with torch.no_grad():
        others = nn.functional.normalize(model(IMAGES), dim=1)
    activations = trunk(IMAGES[anchor : anchor + 1]).detach().requires_grad_()
    embedding = nn.functional.normalize(head(activations), dim=1)
    losses = [
        (embedding - others[p]).square().sum() - (embedding - others[n]).square().sum() + margin
        for p in range(N)
        for n in range(N)
        if p != anchor and LABELS[p] == LABELS[anchor] != LABELS[n]
    ]
    positive = [loss for loss in losses if loss > 0] or [max(losses)]
    (gradient,) = torch.autograd.grad(torch.stack(positive).mean(), activations)
    return -gradient.mean(dim=(2, 3))[0], len(positive), len(losses)


def weighted_maps(model, images, weights):
    """The sum of weighted channels without what is negative, at the size of the images."""
    activations = trunk_of(model)(images).detach()
    maps = torch.einsum("nk,nkuv->nuv", weights.float(), activations).relu()
    return nn.functional.interpolate(maps[:, None], images.shape[-2:], mode="bilinear")[:, 0]


IN_TRIPLETS = [i for i in range(N) if LABELS[i] != "fig"]


@pytest.mark.parametrize("margin", [0.0, 0.02, 5.0])
def test_triplet_weights_by_hand(margin, fitted):
    method = TripletCAM(n_triplets=10**6, margin=margin).fit(fitted, IMAGES, LABELS)
    expected = [triplet_weights(fitted.model, i, margin) for i in IN_TRIPLETS]
    weights = torch.stack([found for found, _, _ in expected])
    assert_allclose(method.weights_[0], weights, rtol=1e-4, atol=1e-4 * weights.abs().max())
    shares = {n_positive / n for _, n_positive, n in expected}
    assert shares == {1.0} if margin == 5 else len(shares) > 1  # what the cases are for


def test_the_triplet_that_comes_closest_stands_in():
    """Two classes far apart: no triplet violates a margin of 0."""
    images = torch.cat([torch.rand(3, 1, 16, 16) + 3, -torch.rand(3, 1, 16, 16) - 3])
    labels = [0, 0, 0, 1, 1, 1]
    ours = explainer(nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                     target_layer="0", proxy="self").fit()  # fmt: skip
    embeddings = torch.from_numpy(ours.transform(images))
    distances = torch.cdist(embeddings, embeddings)
    assert distances[:3, :3].max() < distances[:3, 3:].min()
    method = TripletCAM(margin=0).fit(ours, images, labels)
    assert all(method.weights_[0].abs().sum(dim=1) > 0)


def test_a_map_takes_the_weights_of_the_nearest_training_image(fitted):
    method = TripletCAM(random_state=0).fit(fitted, IMAGES, LABELS)
    others = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(9)) * 3
    nearest = (embeddings_of(others) @ embeddings_of(IMAGES[IN_TRIPLETS]).T).argmax(1)
    assert len(set(nearest)) > 1
    ours = fitted.explain(others, "self", method=method, normalize=False)
    expected = weighted_maps(fitted.model, others, method.weights_[0][nearest])
    assert_allclose(ours, expected, rtol=1e-4, atol=1e-8)


def test_towards_a_class_it_is_the_training_image_nearest_to_both(fitted):
    method = TripletCAM(random_state=0).fit(fitted, IMAGES, LABELS)
    middle = embeddings_of(IMAGES) + fitted.proxies_[0]
    nearest = (middle @ embeddings_of(IMAGES[IN_TRIPLETS]).T).argmax(1)
    weights = fitted.channel_weights(IMAGES, "apple", method=method)
    assert_array_equal(weights, method.weights_[0][nearest])


def test_fewer_triplets_are_drawn_by_the_seed(fitted):
    def weights(n_triplets, seed):
        method = TripletCAM(n_triplets, margin=5, random_state=seed)
        return method.fit(fitted, IMAGES, LABELS).weights_[0]

    assert torch.equal(weights(1, 3), weights(1, 3))
    assert not torch.allclose(weights(1, 3), weights(1, 4))
    assert torch.allclose(weights(12, 3), weights(12, 4))  # 2 positives, 4 negatives at the most
    draws = torch.stack([weights(1, seed) for seed in range(400)]).mean(dim=0)
    deviation = (draws - weights(12, 0)).norm() / weights(12, 0).norm()
    assert deviation < 0.1  # each triplet is as likely as another


def test_triplets_of_a_few_channels(fitted):
    method = TripletCAM(random_state=0).fit(fitted, IMAGES, LABELS)
    few = explainer(top_channels=2).fit(IMAGES, LABELS)
    weights = fitted.channel_weights(IMAGES, "self", method=method)
    low = np.sort(weights, axis=1)[:, -2, None]
    kept = torch.from_numpy(np.where(weights >= low, weights, 0))
    ours = few.explain(IMAGES, "self", method=method, normalize=False)
    expected = weighted_maps(fitted.model, IMAGES, kept)
    assert_allclose(ours, expected, rtol=1e-4, atol=1e-8)


def test_triplets_survive_a_file(fitted, tmp_path):
    method = TripletCAM(random_state=0).fit(fitted, IMAGES, LABELS)
    joblib.dump(method, tmp_path / "method.joblib")
    loaded = joblib.load(tmp_path / "method.joblib")
    assert_array_equal(
        fitted.explain(IMAGES, "self", method=loaded), fitted.explain(IMAGES, "self", method=method)
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * N, "7 images of 1 classes"),
        (list("abcdefg"), "7 images of 7 classes"),
        (LABELS[:3], "one label per image"),
        (None, "TripletCAM needs y"),
    ],
)
def test_triplets_that_cannot_be(labels, message, fitted):
    with pytest.raises(ValueError, match=message):
        TripletCAM().fit(fitted, IMAGES, labels)


def test_triplets_need_training_images(fitted):
    with pytest.raises(NotFittedError, match="call its fit with an explainer"):
        fitted.explain(IMAGES, method=TripletCAM())
    method = TripletCAM().fit(fitted, IMAGES, LABELS)
    with pytest.raises(ValueError, match="TripletCAM explains embeddings"):
        CAMExplainer(network(), target_layer="5", verbose=0).fit().explain(IMAGES, method=method)


def test_contrast_leaves_triplet_weights_alone(fitted):
    ours = explainer(contrast=True).fit(IMAGES, LABELS)
    theirs = TripletCAM(random_state=0).fit(fitted, IMAGES, LABELS)
    assert torch.equal(
        TripletCAM(random_state=0).fit(ours, IMAGES, LABELS).weights_[0], theirs.weights_[0]
    )
