"""The explainer: against Grad-CAM in plain torch, skorch's predictions, and one's own methods."""

from __future__ import annotations

import copy
from functools import partial

import joblib
import numpy as np
import pytest
import torch
import torchvision
from numpy.testing import assert_allclose, assert_array_equal
from plain_explanations import (
    ARRAYS,
    IMAGES,
    LABELS,
    N,
    Y,
    binary_net,
    counted,
    cross_entropy_net,
    explainer,
    net,
    network,
    of_class,
    plain_grad_cam,
    plain_run,
    predicted,
    scaled,
)
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNetClassifier
from small_networks import DropoutNet, ImageAndVector, SmallNet, TupleNet, digits
from torch import nn

from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.cam import GradCAM, GradientMethod, LayerCAM, TopK, WeightedGradientMethod
from sklcam.metrics import evaluate
from sklcam.networks import TargetLayer


def likelihood_net():
    """skorch's default loss, for a module that ends in probabilities."""
    return net(nn.Sequential(SmallNet(), nn.Softmax(dim=1)), IMAGES, Y)


def classifier(**options):
    options = {"image_size": 16, "max_epochs": 1, "batch_size": 3, "verbose": 0, **options}
    return ConsistentCAMClassifier(SmallNet, random_state=0, device="cpu", **options)


@pytest.fixture(scope="module")
def fitted():
    return classifier().fit(ARRAYS, np.array(["nought", "one", "two"])[Y])


# Models


def tokens(side, prefix):
    return lambda tensor: tensor[:, prefix:].transpose(1, 2).unflatten(2, (side, side))


def vision_transformer(num_classes):
    return torchvision.models.VisionTransformer(16, 4, 2, 2, 8, 16, num_classes=num_classes)


FAMILIES = {
    "resnet18": (64, "layer4", None),
    "vgg11": (64, "features.19", None),
    "convnext_tiny": (64, "features.7.2", None),
    "densenet121": (64, "features", None),
    "swin_t": (64, "norm", lambda tensor: tensor.permute(0, 3, 1, 2)),
    "vit": (16, "encoder.layers.encoder_layer_1.ln_1", tokens(4, 1)),
}


def signed_logit(sign, output):
    return sign * output[:, 0]


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_networks(name):
    size, layer, grid = FAMILIES[name]
    make = getattr(torchvision.models, name, vision_transformer)
    if name == "vgg11":  # initialising its 100 million weights takes seconds
        make = partial(torchvision.models.vgg11, init_weights=False)
    model, images = network(make, num_classes=4), torch.randn(2, 3, size, size)
    ours = explainer(model, X=images)
    assert [found.name for found in ours.target_layers_] == [layer]
    expected = plain_grad_cam(model, images, predicted, layer, grid=grid or (lambda tensor: tensor))
    maps = ours.explain(images, normalize=False)
    assert maps.dtype == np.float32
    assert_allclose(maps, expected, rtol=1e-4, atol=1e-6 * max(1, expected.max()))
    maps = ours.explain(images)
    assert maps.shape == (2, size, size)
    assert_allclose(maps, scaled(expected), atol=1e-4)
    assert_allclose(ours.predict_proba(images), model(images).softmax(1).detach(), atol=1e-6)


@pytest.mark.parametrize("make", [cross_entropy_net, likelihood_net])
def test_skorch_net(make):
    model = make()
    ours = explainer(model)
    layer = "5" if make is cross_entropy_net else "0.5"
    assert_allclose(ours.predict_proba(IMAGES), model.predict_proba(IMAGES), atol=1e-6)
    assert_array_equal(ours.predict(IMAGES), model.predict(IMAGES))
    assert_array_equal(ours.classes_, model.classes_)
    assert ours.score(IMAGES, Y) == pytest.approx(model.score(IMAGES, Y))
    expected = plain_grad_cam(model.module_.eval(), IMAGES, of_class(LABELS), layer)
    assert_allclose(ours.explain(IMAGES, LABELS), scaled(expected), atol=1e-5)
    assert_allclose(ours.explain(IMAGES, LABELS, normalize=False), expected, rtol=1e-4, atol=1e-7)


def binary_likelihood_net(**options):
    return binary_net(nn.Sequential(SmallNet(1), nn.Sigmoid()), criterion=nn.BCELoss, **options)


@pytest.mark.parametrize(
    ("make", "layer", "middle"), [(binary_net, "5", 0), (binary_likelihood_net, "0.5", 0.5)]
)
def test_binary_skorch_net(make, layer, middle):
    model = make()
    ours = explainer(model)
    between = np.sort(model.predict_proba(IMAGES)[:, 1])[2:4].mean()
    model.set_params(threshold=between)
    assert model.predict(IMAGES).sum() == 4
    assert_allclose(ours.predict_proba(IMAGES), model.predict_proba(IMAGES), atol=1e-6)
    assert_array_equal(ours.predict(IMAGES), model.predict(IMAGES))
    module = model.module_.eval()
    for label, sign in ((1, 1), (0, -1)):
        expected = plain_grad_cam(module, IMAGES, partial(signed_logit, sign), layer)
        assert_allclose(ours.explain(IMAGES, label), scaled(expected), atol=1e-5)
    named = explainer(model, classes=["no", "yes"])
    assert_array_equal(named.predict(IMAGES) == "yes", model.predict(IMAGES) == 1)
    assert_array_equal(named.explain(IMAGES, "yes"), ours.explain(IMAGES, 1))
    assert_array_equal(
        ours.explain(IMAGES),
        ours.explain(IMAGES, (module(IMAGES)[:, 0] > middle).long()),
    )


def test_consistent_cam_classifier(fitted):
    ours = CAMExplainer(fitted, verbose=0).fit()
    assert_array_equal(ours.explain(ARRAYS), fitted.explain(ARRAYS))
    assert_array_equal(ours.predict(ARRAYS), fitted.predict(ARRAYS))
    assert_array_equal(ours.classes_, fitted.classes_)
    assert_allclose(ours.predict_proba(ARRAYS), fitted.predict_proba(ARRAYS), atol=1e-7)
    method = LayerCAM(relu=False)
    for options in (
        {"target": "two", "method": "xgradcam"},
        {"target": TopK(2), "normalize": False},
        {"frame": "image", "method": method},
    ):
        assert_array_equal(ours.explain(ARRAYS, **options), fitted.explain(ARRAYS, **options))
    assert_array_equal(
        ours.set_params(method=method).explain(ARRAYS), fitted.explain(ARRAYS, method=method)
    )
    weights = ours.channel_weights(ARRAYS, method="gradcam")
    assert_array_equal(weights, fitted.channel_weights(ARRAYS))
    inputs = torch.cat(list(fitted.iter_inputs(ARRAYS)))
    earlier = CAMExplainer(fitted, target_layer="2", verbose=0).fit()
    expected = plain_grad_cam(fitted.module_.eval(), inputs, predicted, "2")
    assert_allclose(earlier.explain(ARRAYS), scaled(expected), atol=1e-5)
    for option in ({"image_size": 16}, {"mean": 0.5}, {"std": [0.5]}, {"resize": "stretch"}):
        with pytest.raises(ValueError, match=next(iter(option))):
            CAMExplainer(fitted, **option).fit(ARRAYS)


def test_only_trained_models():
    for model in (NeuralNetClassifier(SmallNet), classifier()):
        with pytest.raises(NotFittedError, match=type(model).__name__):
            CAMExplainer(model).fit(ARRAYS)
    for model in (LogisticRegression(), SmallNet, None):
        with pytest.raises(ValueError, match="'model' parameter of CAMExplainer"):
            CAMExplainer(model).fit(ARRAYS)


@pytest.mark.parametrize(
    "call",
    ["explain", "iter_explain", "predict", "predict_proba", "channel_weights", "iter_inputs"],
)
def test_needs_fit(call):
    ours = CAMExplainer(network(), verbose=0)
    with pytest.raises(NotFittedError):
        check_is_fitted(ours)
    with pytest.raises(NotFittedError):
        getattr(ours, call)(IMAGES)
    check_is_fitted(ours.fit(IMAGES))


def test_fit_without_images():
    assert [layer.name for layer in explainer(X=None).target_layers_] == ["5"]
    model = network(vision_transformer, 4)
    explainer(model, X=None, image_size=16)
    with pytest.raises(ValueError, match="Give fit an X"):
        explainer(model, X=None)
    with pytest.raises(ValueError, match="Give fit an X"):
        explainer(network(ImageAndVector), X=None, image_input="image", target_layer="conv")


# Classes and predictions


@pytest.mark.parametrize("module", [SmallNet, DropoutNet, TupleNet])
def test_predictions(module):
    model = network(module)
    logits = model(IMAGES)
    logits = logits[0] if module is TupleNet else logits
    ours = explainer(model.train())
    assert_allclose(ours.predict_proba(IMAGES), logits.softmax(1).detach(), atol=1e-6)
    assert_array_equal(ours.predict(IMAGES), logits.argmax(1))
    assert_array_equal(ours.classes_, [0, 1, 2])
    right = (logits.argmax(1).numpy() == Y).astype(float)
    assert ours.score(IMAGES, Y) == pytest.approx(right.mean())
    assert ours.score(IMAGES, torch.from_numpy(Y)) == pytest.approx(right.mean())
    weights = np.arange(1.0, N + 1)
    expected = np.average(right, weights=weights)
    assert ours.score(IMAGES, Y, sample_weight=weights) == pytest.approx(expected)
    with pytest.raises(ValueError, match="needs y"):
        ours.score(IMAGES)


def test_probabilities_are_left_alone():
    model = nn.Sequential(network(), nn.Softmax(dim=1))
    assert_allclose(explainer(model).predict_proba(IMAGES), model(IMAGES).detach(), atol=1e-6)


class Gated(nn.Module):
    """A sigmoid inside, not at the end."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        logits = self.net(x)
        return logits * torch.sigmoid(logits)


@pytest.mark.parametrize(
    "end",
    [nn.Sigmoid(), torch.sigmoid, torch.sigmoid_, lambda x: x.sigmoid()[:, :], torch.special.expit],
)
def test_sigmoids_of_several_labels_are_probabilities(end):
    class Labels(Gated):
        def forward(self, x):
            return end(self.net(x))

    model = Labels()
    ours = explainer(model)
    assert_allclose(ours.predict_proba(IMAGES), model(IMAGES).detach(), atol=1e-6)
    options = {"target": 1, "metrics": ("average_drop", "iauc"), "progress": False}
    found = evaluate(ours, IMAGES, **options)
    expected = evaluate(ours, IMAGES, score=lambda output: output[:, 1], **options)
    for name in ("average_drop", "iauc"):
        assert_allclose(found[name], expected[name], atol=1e-6)


def test_a_sigmoid_inside_makes_no_probabilities():
    model = Gated()
    expected = model(IMAGES).softmax(1).detach()
    assert_allclose(explainer(model).predict_proba(IMAGES), expected, atol=1e-6)


def test_labels_by_classes_or_by_y():
    names = np.array(["pear", "fig", "apple"])
    logits = network()(IMAGES)
    by_classes = explainer(classes=names)
    assert_array_equal(by_classes.classes_, names)
    assert_array_equal(by_classes.predict(IMAGES), names[logits.argmax(1)])
    by_y = explainer(y=names[Y])
    assert_array_equal(by_y.classes_, np.sort(names))
    assert_array_equal(by_y.predict(IMAGES), np.sort(names)[logits.argmax(1)])
    assert_array_equal(explainer(y=Y[:1]).classes_, [0, 1, 2])
    numbers = explainer().explain(IMAGES, LABELS)
    assert_array_equal(by_classes.explain(IMAGES, names[LABELS]), numbers)
    assert_array_equal(by_classes.explain(IMAGES, names[LABELS].tolist()), numbers)
    assert by_classes.score(IMAGES, names[logits.argmax(1)]) == 1
    with pytest.raises(ValueError, match="3 outputs, but there are 2 different labels"):
        explainer(y=["a", "b"])
    with pytest.raises(ValueError, match="plum"):
        by_classes.explain(IMAGES, "plum")


class DenseNet(nn.Module):
    """A score for each pixel, or a dict, instead of one for each class."""

    def __init__(self, as_dict=False):
        super().__init__()
        self.features, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.as_dict = as_dict

    def forward(self, x):
        output = self.head(torch.relu(self.features(x)))
        return {"out": output} if self.as_dict else output


def test_outputs_that_are_no_classes():
    model = network(DenseNet)
    ours = explainer(model, target_layer="features")
    assert ours.classes_ is None

    def score(output):
        return output[:, 1].sum((1, 2))

    expected = plain_grad_cam(model, IMAGES, score, "features")
    assert_allclose(ours.explain(IMAGES, score), scaled(expected), atol=1e-5)
    for target in (None, 1, LABELS, TopK(1)):
        with pytest.raises(ValueError, match="callable"):
            ours.explain(IMAGES, target)
    with pytest.raises(ValueError, match="no classes to predict"):
        ours.predict(IMAGES)
    assert_allclose(  # of a mapping, the only tensor counts
        explainer(network(DenseNet, as_dict=True), target_layer="features").explain(IMAGES, score),
        scaled(expected),
        atol=1e-5,
    )


# Targets


def test_targets():
    model = network()
    ours = explainer(model)

    def expect(classes):
        return scaled(plain_grad_cam(model, IMAGES, of_class(classes)))

    ranked = model(IMAGES).argsort(dim=1, descending=True).numpy()
    rows = np.array([LABELS, np.roll(LABELS, 1)]).T
    by_rank = np.stack([expect(ranked[:, j]) for j in range(3)], 1)
    for target, expected in (
        (None, by_rank[:, 0]),
        (1, expect([1] * N)),
        (LABELS, expect(LABELS)),
        (torch.tensor(LABELS), expect(LABELS)),
        (rows, np.stack([expect(rows[:, j]) for j in range(2)], 1)),
        (TopK(1), by_rank[:, :1]),
        (TopK(3), by_rank),
        (lambda output: output[:, 0] - output[:, 2], None),
    ):
        with counted(model) as passes:
            maps = ours.explain(IMAGES, target)
        assert passes == [3, 3, 1]  # one pass a batch, however many classes
        if expected is None:
            expected = scaled(plain_grad_cam(model, IMAGES, target))
        assert maps.shape == expected.shape
        assert_allclose(maps, expected, atol=1e-5)


# scikit-learn


def test_copies_share_the_model(tmp_path):
    model = network()
    ours = explainer(
        model, GradCAM(relu=False), target_layer=[TargetLayer("2"), "5"], classes=["a", "b", "c"]
    )
    copied = clone(ours)
    assert copied.model is model
    assert copied.method is not ours.method
    assert clone(copied).model is model
    with pytest.raises(NotFittedError):
        check_is_fitted(copied)
    params, others = ours.get_params(), copied.get_params()
    assert {name: str(value) for name, value in params.items()} == {
        name: str(value) for name, value in others.items()
    }
    assert params["method__relu"] is False
    copied.set_params(method__relu=True, batch_size=2).fit(IMAGES)
    assert ours.method.relu is False
    expected = explainer(model, GradCAM(relu=True), target_layer=["2", "5"]).explain(IMAGES)
    assert_allclose(copied.explain(IMAGES), expected, atol=1e-5)
    path = tmp_path / "explainer.joblib"
    joblib.dump(ours, path)
    loaded = joblib.load(path)
    assert_array_equal(loaded.explain(IMAGES), ours.explain(IMAGES))
    assert_array_equal(loaded.predict(IMAGES), ours.predict(IMAGES))
    assert_array_equal(copy.deepcopy(ours).explain(IMAGES), ours.explain(IMAGES))


def test_is_a_classifier():
    ours = CAMExplainer(network(), "scorecam")
    assert is_classifier(ours)
    assert get_tags(ours).estimator_type == "classifier"
    assert "scorecam" in repr(ours)
    assert ours._repr_html_()
    with pytest.raises(ValueError, match="Invalid parameter 'methd'"):
        ours.set_params(methd="gradcam")


def total_of_maps(estimator, X, y=None):
    return estimator.explain(X).sum()


@pytest.mark.parametrize("make", [network, cross_entropy_net])
def test_searches_over_methods(make):
    X, y = digits(30)
    methods = ["gradcam", "hirescam", "uniform", "fakecam"]
    ours = CAMExplainer(make(), image_size=16, verbose=0)
    search = GridSearchCV(ours, {"method": methods}, scoring=total_of_maps, cv=3, n_jobs=1)
    search.fit(X, y)
    assert search.best_params_ == {"method": "uniform"}  # 1 everywhere
    assert search.best_score_ == pytest.approx(10 * 16 * 16)
    assert search.best_estimator_.model is ours.model
    scores = cross_val_score(ours, X, y, cv=3)
    assert scores.mean() == pytest.approx(ours.fit(X, y).score(X, y))


def test_global_generators_are_left_alone(fitted):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    model = network(DropoutNet).train()
    torch.set_rng_state(before[0])
    for of, X in ((model, IMAGES), (model, ARRAYS), (fitted, ARRAYS)):
        options = {} if of is fitted else {"image_size": 16}
        ours = explainer(of, X=X, **options)
        ours.fit()
        ours.explain(X)
        ours.explain(X, method="scorecam")
        ours.predict(X)
        ours.channel_weights(X)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


# Methods of one's own


class SquaredActivations(GradientMethod):
    """Writes combine() and nothing else."""

    def combine(self, activations, gradients):
        return (activations**2 * gradients).sum(dim=1)


class LargestGradient(WeightedGradientMethod):
    """Writes weights() and nothing else."""

    def weights(self, activations, gradients):
        return gradients.amax(dim=(2, 3))


@pytest.mark.parametrize("method", [SquaredActivations, LargestGradient])
@pytest.mark.parametrize("target", [LABELS, None])
def test_methods_of_ones_own(method, target, fitted):
    def plain(model, images, score, layer="5"):
        output, (activations,) = plain_run(model, [layer], images)
        (gradient,) = torch.autograd.grad(score(output).sum(), activations)
        if method is SquaredActivations:
            maps = (activations.square() * gradient).sum(1, keepdim=True)
        else:
            maps = (gradient.amax((2, 3), keepdim=True) * activations).sum(1, keepdim=True)
        maps = nn.functional.interpolate(maps.relu(), (16, 16), mode="bilinear")[:, 0]
        return scaled(maps.detach().numpy())

    score = predicted if target is None else of_class(target)
    model = network()
    expected = plain(model, IMAGES, score)
    for given in (method, method(), method(relu=True)):
        assert_allclose(explainer(model, given).explain(IMAGES, target), expected, atol=1e-5)
    inputs = torch.cat(list(fitted.iter_inputs(ARRAYS)))
    expected = plain(fitted.module_.eval(), inputs, score, fitted.target_layer_.name)
    labels = None if target is None else fitted.classes_[target]
    for given in (method, method()):
        maps = fitted.explain(ARRAYS, labels, method=given)
        assert_allclose(maps, expected, atol=1e-5)
        ours = CAMExplainer(fitted, given, verbose=0).fit()
        assert_array_equal(ours.explain(ARRAYS, labels), maps)
    assert clone(method(relu=False)).relu is False
