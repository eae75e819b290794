"""Networks that bring their embeddings to length 1: recognised, and explained before that."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from embedders import DIM, IMAGES, LABELS, explainer, network
from numpy.testing import assert_allclose, assert_array_equal
from small_networks import SmallNet
from torch import nn

import sklcam
from sklcam import EmbeddingCAMExplainer
from sklcam.embeddings import TripletCAM


class Normalizing(SmallNet):
    """The network of the tests, whose embeddings are brought to length 1."""

    in_place = False

    def forward(self, x):
        embeddings = super().forward(x)
        if self.in_place:
            return embeddings.div_(embeddings.detach().norm(dim=1, keepdim=True))
        return nn.functional.normalize(embeddings, dim=1)


def normalizing(dtype=torch.float32, in_place=False):
    model = Normalizing(num_classes=DIM).eval()
    model.load_state_dict(network().state_dict())
    model.in_place = in_place
    return model.to(dtype)


def silent(model, *fitted_to, **options):
    """An explainer whose fit does not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return explainer(model, **options).fit(*fitted_to)


def test_the_gradient_of_an_embedding_with_itself_is_zero():
    """What the refusal is about, in float64: all that is left of the gradient is rounding."""
    model, images = normalizing(torch.float64), IMAGES.double().requires_grad_()
    embeddings = model(images)
    (gradient,) = torch.autograd.grad((embeddings * embeddings.detach()).sum(), images)
    (towards,) = torch.autograd.grad(model(images)[:, 0].sum(), images)
    assert gradient.abs().max() < 1e-14 * towards.abs().max() * 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("X", [None, IMAGES])
def test_self_is_refused_in_fit(X, dtype):
    match = "product of each with itself is the same .* embedding_layer=, such as '8'"
    with pytest.raises(ValueError, match=match):
        explainer(normalizing(dtype), proxy="self").fit(None if X is None else X.to(dtype))


def test_self_is_refused_as_a_target():
    with pytest.warns(UserWarning, match="normalises its embeddings to one length"):
        fitted = explainer(normalizing()).fit(IMAGES, LABELS)
    assert fitted.normalizes_
    with pytest.raises(ValueError, match="product of each with itself is the same"):
        fitted.explain(IMAGES, target="self")
    assert fitted.explain(IMAGES, target="apple").any()


@pytest.mark.parametrize("in_place", [False, True])
def test_the_layer_before_is_explained_as_the_network_without_it(in_place):
    expected, model = explainer().fit(IMAGES, LABELS), normalizing(in_place=in_place)
    fitted = silent(model, IMAGES, LABELS, embedding_layer="8")
    assert not fitted.normalizes_
    assert_allclose(fitted.proxies_, expected.proxies_, atol=1e-6)
    for target in (None, "pear", "self", IMAGES[:1]):
        for method in ("gradcam", "scorecam", "ablationcam"):
            maps = fitted.explain(IMAGES, target, method=method)
            assert_allclose(maps, expected.explain(IMAGES, target, method=method), atol=1e-5)
    assert_array_equal(fitted.predict(IMAGES), expected.predict(IMAGES))
    assert not model[8]._forward_hooks


def test_other_networks_are_not_taken_for_one():
    assert not silent(None, proxy="self").normalizes_
    # By chance of length 1, for one image.
    model = network().double()
    image = IMAGES[:1].double()
    with torch.no_grad():
        model[8].bias.zero_()
        model[8].weight /= model(image).norm()
        assert model(image).norm() == pytest.approx(1)
    assert not silent(model, image, proxy="self").normalizes_


def test_a_network_that_says_nearly_the_same_of_all_images_is_not_taken_for_one():
    """As one with random weights may, whose last layer's bias is all that is left."""
    model = network()
    with torch.no_grad():
        model[8].weight *= 1e-5
    fitted = silent(model, IMAGES, LABELS, proxy="self")
    assert not fitted.normalizes_
    with torch.no_grad():  # equation 17, up to a factor
        expected = nn.functional.normalize(model(IMAGES) @ model[8].weight)
    weights = torch.from_numpy(fitted.channel_weights(IMAGES))
    assert_allclose(nn.functional.normalize(weights), expected, rtol=1e-4)


def test_triplet_cam_learns_on_a_network_that_normalizes():
    with pytest.warns(UserWarning, match="normalises its embeddings to one length"):
        fitted = explainer(normalizing()).fit(IMAGES, LABELS)
    method = TripletCAM(random_state=0).fit(fitted, IMAGES, LABELS)
    assert all(weights.isfinite().all() for weights in method.weights_)


def test_layers_that_do_not_fit():
    unused = nn.Sequential(*network())
    unused.forward = nn.Sequential(*unused).forward
    unused.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="embedding_layer='extra' does not run"):
        explainer(unused, proxy="self", embedding_layer="extra").fit(IMAGES)
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8, 8\); embeddings are"):
        explainer(proxy="self", embedding_layer="5").fit(IMAGES)


class Scaled(Normalizing):
    scale = 1.0

    def forward(self, x):
        return self.scale * super().forward(x)


@pytest.mark.parametrize("scale", [16.0, 0.1])
def test_embeddings_of_another_length_are_recognised(scale):
    model = Scaled(num_classes=DIM).eval()
    model.scale = scale
    with pytest.raises(ValueError, match="normalises its embeddings to one length"):
        explainer(model, proxy="self").fit(IMAGES)


class Twice(Normalizing):
    def forward(self, x):
        again = self[8](torch.ones(len(x), self[8].in_features))
        return nn.functional.normalize(super().forward(x) + again)


def test_a_layer_that_runs_twice_gives_no_embedding():
    with pytest.raises(ValueError, match="'8' runs 2 times"):
        explainer(Twice(num_classes=DIM).eval(), embedding_layer="8").fit(IMAGES, LABELS)


def test_copies_explain_their_own_network():
    fitted = silent(normalizing(), IMAGES, LABELS, embedding_layer="8")
    loaded = pickle.loads(pickle.dumps(fitted))
    assert_array_equal(loaded.explain(IMAGES), fitted.explain(IMAGES))
    duplicate = copy.deepcopy(fitted)
    with torch.no_grad():
        duplicate.model[8].weight.zero_()
        duplicate.model[8].bias.fill_(2.0)
    assert_allclose(duplicate.transform(IMAGES), np.full((len(IMAGES), DIM), DIM**-0.5), rtol=1e-6)
    assert not np.allclose(fitted.transform(IMAGES), DIM**-0.5)


def test_files_keep_the_layer(tmp_path):
    fitted = silent(normalizing(), IMAGES, LABELS, embedding_layer="8")
    sklcam.save(fitted, tmp_path / "fig.sklcam")
    loaded = sklcam.load(tmp_path / "fig.sklcam", objects={"Normalizing": normalizing()})
    assert isinstance(loaded, EmbeddingCAMExplainer) and loaded.normalizes_ is False
    assert_array_equal(loaded.explain(IMAGES), fitted.explain(IMAGES))
    assert np.isfinite(loaded.proxies_).all()
