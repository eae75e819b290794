"""What an embedding net explains, and with which proxies."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from embedding_nets import CLASSES, DIM, NAMES, X, embedder, prepared
from numpy.testing import assert_allclose, assert_array_equal
from pytorch_metric_learning import losses

from sklcam import CAMExplainer, EmbeddingCAMExplainer
from sklcam.datasets import load_digits
from sklcam.metrics import box_masks, heatmap_ratio


@pytest.fixture(scope="module")
def fitted():
    return embedder(max_epochs=2).fit(X, NAMES)


@pytest.fixture(scope="module")
def with_proxies():
    return embedder(criterion="proxy-anchor", max_epochs=2).fit(X, NAMES)


def explainer_of(net, **options):
    options = {"target_layer": "5", "verbose": 0, **options}
    return EmbeddingCAMExplainer(net.module_, **options)


def test_explain_shows_where_an_image_is_like_itself(fitted):
    maps = fitted.explain(X)
    assert maps.shape == (60, 16, 16) and maps.dtype == np.float32
    bare = explainer_of(fitted, proxy="self").fit()
    assert_allclose(maps, bare.explain(prepared()), atol=1e-6)
    raw = fitted.explain(X, normalize=False)
    assert_allclose(raw, bare.explain(prepared(), normalize=False), rtol=1e-4, atol=1e-6)
    around_net = EmbeddingCAMExplainer(fitted, proxy="self", verbose=0).fit()
    assert_array_equal(maps, around_net.explain(X))


@pytest.mark.parametrize("count", [1, 60])
def test_explain_shows_where_an_image_is_like_another(count, fitted):
    references = X[::-1][:count]
    maps = fitted.explain(X, references)
    bare = explainer_of(fitted, proxy="self").fit()
    assert_allclose(maps, bare.explain(prepared(), prepared(references.copy())), atol=1e-6)
    assert not np.allclose(maps, fitted.explain(X), atol=0.01)
    with pytest.raises(ValueError, match="7 reference images for 60 images"):
        fitted.explain(X, X[:7])


def test_options_of_explain(fitted):
    maps = fitted.explain(X[:5], method="scorecam")
    bare = explainer_of(fitted, proxy="self", method="scorecam").fit()
    assert_allclose(maps, bare.explain(prepared(X[:5])), atol=1e-5)
    assert fitted.explain(X[:5], frame="image").shape == (5, 8, 8)


def test_an_explainer_prepares_images_as_the_net_does(fitted):
    arrays = (255 * X).astype(np.uint8)
    around_net = EmbeddingCAMExplainer(fitted, verbose=0).fit(arrays, NAMES)
    around_module = explainer_of(fitted).fit(prepared(arrays), NAMES)
    assert_allclose(around_net.proxies_, around_module.proxies_, atol=1e-6)
    for target in (None, NAMES, "self"):
        maps = around_net.explain(arrays, target)
        assert_allclose(maps, around_module.explain(prepared(arrays), target), atol=1e-6)
    assert_allclose(around_net.transform(arrays), fitted.transform(arrays), atol=1e-6)


@pytest.mark.parametrize("target", CLASSES)
def test_the_proxies_that_were_trained_are_explained(target, with_proxies):
    net = with_proxies
    ours = EmbeddingCAMExplainer(net, proxy=net.proxies_, classes=net.classes_, verbose=0).fit()
    proxy = torch.from_numpy(net.proxies_[CLASSES.index(target)])
    theirs = CAMExplainer(net.module_, target_layer="5", verbose=0).fit()
    expected = theirs.explain(prepared(), lambda embeddings: embeddings @ proxy)
    assert_allclose(ours.explain(X, target), expected, atol=1e-5)


@pytest.mark.parametrize("criterion", ["proxy-anchor", "proxy-nca++", losses.ProxyAnchorLoss])
def test_proxies(criterion):
    net = embedder(criterion=criterion).fit(X, NAMES)
    assert net.proxies_.shape == (3, DIM) and net.proxies_.dtype == np.float32
    (learned,) = net.criterion_.parameters()
    assert_array_equal(net.proxies_, learned.detach().numpy())


@pytest.mark.parametrize("criterion", ["margin", "triplet", losses.ArcFaceLoss])
def test_losses_without_proxies(criterion):
    net = embedder(criterion=criterion).fit(X, NAMES)
    assert not hasattr(net, "proxies_")
    with pytest.raises(AttributeError, match="a loss that has proxies"):
        net.proxies_  # noqa: B018


def test_proxies_are_a_copy(with_proxies):
    net = copy.deepcopy(with_proxies)
    kept = net.proxies_
    before = kept.copy()
    net.partial_fit(X, NAMES)
    assert_array_equal(kept, before)
    assert not np.array_equal(net.proxies_, before)


def hidden_digits(n_classes=4, n_each=80):
    """Digits anywhere in 40 x 40 pixels of noise, twice as large as they came, and their boxes."""
    data = load_digits(n_class=n_classes)
    generator = np.random.default_rng(0)
    rows = np.concatenate([np.flatnonzero(data.target == c)[:n_each] for c in range(n_classes)])
    images = generator.uniform(0, 0.5, size=(len(rows), 40, 40)).astype(np.float32)
    corners = generator.integers(0, 24, size=(len(rows), 2))
    for image, row, (left, top) in zip(images, rows, corners, strict=True):
        image[top : top + 16, left : left + 16] += data.data[row].repeat(2, 0).repeat(2, 1)
    boxes = torch.from_numpy(np.concatenate([corners, corners + 16], axis=1)).double()
    return images.clip(0, 1), data.target[rows], box_masks(list(boxes[:, None]), (40, 40)).float()


def test_a_trained_network_looks_at_the_object():
    """Held-out images: the share of the map that lies on the digit, which covers a sixth."""
    images, labels, masks = hidden_digits()
    held_out = np.arange(len(labels)) % 4 == 0
    options = {"module__width": 16, "image_size": 40, "embedding_dim": 16, "batch_size": 16}
    net = embedder(**options, augment=None, max_epochs=20)
    net.fit(images[~held_out], labels[~held_out])
    assert net.score(images[held_out], labels[held_out]) > 0.6  # by chance a quarter
    masks = masks[held_out]
    uniform = heatmap_ratio(torch.ones_like(masks), masks).mean()
    for contrast in (False, True):
        explainer = EmbeddingCAMExplainer(net, contrast=contrast, verbose=0)
        explainer.fit(images[~held_out], labels[~held_out])
        for target in (labels[held_out], "self"):
            maps = torch.from_numpy(explainer.explain(images[held_out], target))
            assert heatmap_ratio(maps, masks).nanmean() > uniform + 0.3
