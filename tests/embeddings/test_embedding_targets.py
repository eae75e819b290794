"""Questions about embeddings become directions: by hand, and with other inputs beside the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from embedders import CLASSES, IMAGES, LABELS, N, explainer
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from sklcam import EmbeddingCAMExplainer
from sklcam.cam import Classes, Directions, Target, TopK
from sklcam.embeddings import NearestProxies, SinglePoint
from sklcam.embeddings.targets import ProxyClasses, cosines
from sklcam.metrics import evaluate

PROXIES = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
# By cosine 0.6 and 0.8 to the first two, 0.8 and -0.6: the length of a proxy does not count.
EMBEDDINGS = torch.tensor([[3.0, 4.0], [8.0, -6.0]])


# Targets


@pytest.mark.parametrize(
    ("target", "directions", "indices"),
    [
        (NearestProxies(PROXIES), [[[0, 1]], [[2, 0]]], [[1], [0]]),
        (NearestProxies(PROXIES, 2), [[[0, 1], [2, 0]], [[2, 0], [0, 1]]], [[1, 0], [0, 1]]),
        (
            NearestProxies(PROXIES, shared=torch.tensor([1.0, 1.0])),
            [[[-1, 0]], [[1, -1]]],
            [[1], [0]],
        ),
        (ProxyClasses(Classes(torch.tensor([2, 0])), PROXIES), [[[-1, 0]], [[2, 0]]], [[2], [0]]),
        (SinglePoint(), [[[0.6, 0.8]], [[0.8, -0.6]]], None),
        (SinglePoint(torch.tensor([0.6, 0.0])), [[[0, 0.8]], [[0.2, -0.6]]], None),
    ],
)
def test_they_resolve_to_directions(target, directions, indices):
    resolved = target.resolve(EMBEDDINGS)
    assert (resolved.several, resolved.k) == (target.several, target.k)
    torch.testing.assert_close(resolved.directions, torch.tensor(directions).float())
    assert resolved.names_classes == target.names_classes == (indices is not None)
    assert (None if indices is None else resolved.indices.tolist()) == indices
    scores = torch.einsum("nd,nkd->nk", EMBEDDINGS, torch.tensor(directions).float())
    torch.testing.assert_close(resolved.scores(EMBEDDINGS), scores)
    torch.testing.assert_close(target.scores(EMBEDDINGS), scores)


def test_a_part_of_a_batch():
    target = ProxyClasses(Classes(torch.tensor([2, 0])), PROXIES).take(slice(1, 2))
    assert target.resolve(EMBEDDINGS[1:]).directions.tolist() == [[[2.0, 0.0]]]


@pytest.mark.parametrize(
    ("indices", "message"),
    [([0, 3], "indices from 0 to 3, .* has 3 classes"), ([0], r"\(2, 2\); got shape \(1, 2\)")],
)
def test_classes_that_have_no_proxy(indices, message):
    with pytest.raises(ValueError, match=message):
        ProxyClasses(Classes(torch.tensor(indices)), PROXIES).resolve(EMBEDDINGS)


# Through an explainer


@pytest.fixture(scope="module")
def fitted():
    return explainer().fit(IMAGES, LABELS)


@pytest.fixture(scope="module")
def contrasting():
    return explainer(contrast=True).fit(IMAGES, LABELS)


def highest(ours, k):
    return ours.classes_[np.argsort(-ours.predict_proba(IMAGES), axis=1)[:, :k]]


INDICES = torch.tensor([0, 2, 1, 1, 0, 2, 2])


@pytest.mark.parametrize("kind", ["fitted", "contrasting"])
@pytest.mark.parametrize(
    ("by_index", "by_label"),
    [
        (None, lambda ours: ours.predict(IMAGES)),
        (TopK(2), lambda ours: highest(ours, 2)),
        (TopK(1), lambda ours: highest(ours, 1)),
        (INDICES, np.array(CLASSES)[INDICES]),
        (Classes(INDICES[:, None].repeat(1, 2)), np.array(CLASSES)[INDICES[:, None].repeat(1, 2)]),
        (SinglePoint(), "self"),
    ],
)
def test_one_batch_is_asked_as_all_images_are(kind, by_index, by_label, request):
    ours = request.getfixturevalue(kind)
    by_label = by_label(ours) if callable(by_label) else by_label
    maps, _ = ours.explain_inputs(IMAGES, by_index, normalize=False)
    expected = ours.explain(IMAGES, by_label, normalize=False)  # in batches of another size
    assert_allclose(maps, expected, atol=1e-5 * expected.max())
    if by_index is not INDICES:  # what labels are for one batch
        again = ours.explain(IMAGES, by_index, normalize=False)
        assert_allclose(again, expected, atol=1e-5 * expected.max())


def test_contrast_is_taken_off_once(contrasting):
    """Also of a target that has been translated, or resolved by another batch's output."""
    shared = torch.nn.functional.normalize(torch.from_numpy(contrasting.proxies_), dim=1).mean(0)
    vectors = torch.randn(N, 5, generator=torch.Generator().manual_seed(4))
    expected = explainer(proxy="self").fit().explain(IMAGES, Directions(vectors - shared))
    assert_allclose(contrasting.explain(IMAGES, Directions(vectors)), expected, atol=1e-6)
    assert_allclose(contrasting.explain_inputs(IMAGES, vectors)[0], expected, atol=1e-6)
    maps, _, resolved = contrasting.explain_batch(IMAGES, vectors, methods=["gradcam"])
    again, _ = contrasting.explain_inputs(IMAGES, contrasting.translate(resolved))
    assert_array_equal(again, maps[0])


class First(Target):
    """The first dimension of an embedding."""

    names_classes = True

    def scores(self, output, inputs=None, rows=None):
        return output[:, :1]

    def probability(self, probabilities, rows=None):
        return probabilities[:, 0]


def test_a_target_of_ones_own_sees_the_embeddings(fitted):
    axis = Directions(torch.eye(5)[:1].expand(N, -1))
    assert_allclose(fitted.explain(IMAGES, First()), fitted.explain(IMAGES, axis), atol=1e-6)
    result = evaluate(fitted, IMAGES, target=First(), metrics="average_drop", progress=False)
    full = fitted.predict_proba(IMAGES)[:, 0]
    maps = torch.from_numpy(fitted.explain(IMAGES, First()))
    seen = fitted.predict_proba(IMAGES * maps[:, None])[:, 0]
    assert_allclose(result["average_drop"], np.maximum(full - seen, 0) / full, atol=1e-5)


def test_a_single_neighbour_has_an_axis_of_its_own(fitted):
    found = fitted.explain_neighbors(IMAGES[:2], IMAGES[2:], k=1)
    assert found.query_maps.shape == found.neighbor_maps.shape == (2, 1, 16, 16)


# Several inputs


class Gated(nn.Module):
    """Embeds by the mean of each of two channels, times a gate."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, image, gate):
        if len(image) != len(gate):  # which would be broadcast
            raise ValueError(f"{len(image)} images and {len(gate)} gates.")
        return self.layer(image).mean((2, 3)) * gate


def gated(images, gate):
    return {"image": torch.tensor(images), "gate": torch.tensor(gate)}


# Means of 1, 2 and of 3, 4; times the gates (3, 4) and (8, 3).
X = gated([[[[0.0, 2.0]], [[4.0, 0.0]]], [[[6.0, 0.0]], [[0.0, 8.0]]]], [[3.0, 2.0], [1.0, 1.0]])
# Means of 4, 0 and of 0, 6: along the one axis and along the other.
Z = gated([[[[8.0, 0.0]], [[0.0, 0.0]]], [[[0.0, 0.0]], [[0.0, 12.0]]]], [[2.0, 5.0], [7.0, 1.0]])


def two_inputs(**options):
    options = {"image_input": "image", "target_layer": "layer", "proxy": "self", **options}
    return EmbeddingCAMExplainer(Gated(), batch_size=1, verbose=0, **options)


def raw(images, gate, direction):
    """Half of the gate and of the direction weigh each channel: the mean of two positions."""
    weights = (gate * torch.as_tensor(direction) / 2)[..., None, None]
    return (weights * images).sum(-3).relu()


def unit(X):
    embeddings = X["image"].mean((2, 3)) * X["gate"]
    return embeddings / embeddings.norm(dim=1, keepdim=True)


def test_pairs_of_several_inputs():
    ours = two_inputs().fit(X)
    assert_allclose(ours.transform(X), [[0.6, 0.8], [0.6, 0.8]], atol=1e-6)
    on_x, on_z = ours.explain_pairs(X, Z, normalize=False)
    assert_allclose(on_x, raw(X["image"], X["gate"], unit(Z)), atol=1e-6)
    assert_allclose(on_z, raw(Z["image"], Z["gate"], unit(X)), atol=1e-6)
    # Towards the first axis the first channel counts, by 3 / 2; towards the second one the second.
    assert on_x.tolist() == [[[0.0, 3.0]], [[0.0, 4.0]]]


def test_neighbours_of_several_inputs():
    gallery = {name: torch.cat([Z[name], X[name][:1]]) for name in X}
    found = two_inputs().fit(X).explain_neighbors(X, gallery, k=2)
    # Of (0.6, 0.8): itself, with a cosine of 1, then the second axis, with one of 0.8.
    assert found.indices.tolist() == [[2, 1], [2, 1]]
    assert_allclose(found.similarities, [[1, 0.8], [1, 0.8]], atol=1e-6)
    for i in range(2):
        for j, other in enumerate(found.indices[i]):
            on_query = raw(X["image"][i], X["gate"][i], unit(gallery)[other])
            on_other = raw(gallery["image"][other], gallery["gate"][other], unit(X)[i])
            for maps, expected in ((found.query_maps, on_query), (found.neighbor_maps, on_other)):
                low, high = expected.min(), expected.max()
                assert_allclose(maps[i, j], (expected - low) / (high - low), atol=1e-6)


def test_proxies_and_references_of_several_inputs():
    ours = two_inputs(proxy="mean").fit(Z, ["right", "up"])
    assert_allclose(ours.proxies_, np.eye(2), atol=1e-6)
    assert ours.predict(X).tolist() == ["up", "up"]
    for target in ("up", {name: value[1:] for name, value in Z.items()}):
        maps = ours.explain(X, target, normalize=False)
        assert_allclose(maps, raw(X["image"], X["gate"], [0.0, 1.0]), atol=1e-6)


def test_a_dict_is_no_target_of_a_network_of_one_input(fitted):
    with pytest.raises(ValueError, match=r"does not take inputs with the names \['image'\]"):
        fitted.explain(IMAGES, {"image": IMAGES})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_cosines_in_the_precision_of_the_embeddings(dtype):
    """Proxies are float32, whatever the network computes in."""
    embeddings = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=dtype)
    found = cosines(embeddings, torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
    expected = torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=found.dtype)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found, expected)
