"""Adapters: each kind of model is recognised once, called as it is, and read as it means it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backbones import SmallNet
from sklearn.exceptions import NotFittedError
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from small_networks import ImageAndVector, TupleNet, digits
from small_networks import SmallNet as DigitNet
from torch import nn

import sklcam
from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.images.framed import FramedItems
from sklcam.images.normalization import normalize
from sklcam.networks import Inputs, Preparation, adapt
from sklcam.networks.adapters import ModuleAdapter, SkorchAdapter
from sklcam.networks.inputs import NetworkTensors
from sklcam.networks.tasks import Evidence

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net(module=None, kind=NeuralNetClassifier, **options) -> NeuralNet:
    """A skorch net that could predict, with weights drawn from a seed."""
    torch.manual_seed(0)
    module = SmallNet(num_classes=3) if module is None else module
    return kind(module, **{"verbose": 0, "train_split": None, **options}).initialize()


def binary_net(**options) -> NeuralNet:
    module = nn.Sequential(SmallNet(num_classes=1), nn.Flatten(0))
    return net(module, NeuralNetBinaryClassifier, **options)


def binary_likelihood_net(**options) -> NeuralNet:
    module = nn.Sequential(SmallNet(num_classes=1), nn.Sigmoid(), nn.Flatten(0))
    return net(module, NeuralNetBinaryClassifier, criterion=nn.BCELoss, **options)


def output_of(adapter, images=IMAGES):
    with torch.no_grad(), adapter.evaluating():
        return adapter.forward(Inputs.of(images))


# The kind


@pytest.mark.parametrize(
    ("model", "kind", "task"),
    [
        (SmallNet(), ModuleAdapter, "multiclass"),
        (net(), SkorchAdapter, "multiclass"),
        (net(kind=NeuralNet, criterion=nn.CrossEntropyLoss), SkorchAdapter, "multiclass"),
        (binary_net(), SkorchAdapter, "binary"),
    ],
)
def test_the_kind_of_a_model(model, kind, task):
    adapter = adapt(model, Preparation())
    assert type(adapter) is kind
    assert adapter.task is None  # nobody has looked
    adapter.settle(Evidence(output_of(adapter)))
    assert adapter.task == task
    assert adapter.network is (model if isinstance(model, nn.Module) else model.module_)


def test_an_estimator_brings_its_own_adapter():
    X, y = digits(12)
    clf = ConsistentCAMClassifier(DigitNet, image_size=8, alpha=0, max_epochs=0, verbose=0).fit(
        X, y
    )
    adapter = adapt(clf, Preparation())
    assert adapter.network is clf.module_
    assert adapter.target_layer == clf.target_layer_
    assert adapter.labels.tolist() == [0, 1, 2]
    assert adapter.input_size == (8, 8)
    with torch.no_grad(), adapter.evaluating():
        dataset = adapter.dataset(X)
        images = torch.stack([framed.image for framed in dataset.read_batch(range(12))])
        inputs = Inputs(adapter.prepare(images, dataset))
        probabilities = adapter.probabilities(adapter.forward(inputs))
    np.testing.assert_allclose(probabilities.numpy(), clf.predict_proba(X), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"image_size": 8}, "image_size"),
        ({"mean": 0.5, "resize": "stretch"}, "resize, mean"),
        ({"std": np.array([0.5, 0.5, 0.5])}, "std"),
    ],
)
def test_an_estimator_prepares_images_as_it_was_trained(options, names):
    clf = ConsistentCAMClassifier(DigitNet)
    with pytest.raises(ValueError, match=rf"^{names} cannot be set for a ConsistentCAM"):
        adapt(clf, Preparation(**options))
    adapt(clf, Preparation(batch_size=3, num_workers=1, mean="auto"))  # how they are read is free


@pytest.mark.parametrize(
    "model", [NeuralNetClassifier(SmallNet), ConsistentCAMClassifier(DigitNet)]
)
def test_a_model_that_was_not_fitted(model):
    with pytest.raises(NotFittedError):
        _ = adapt(model, Preparation()).network


# How networks are called


def test_of_several_outputs_the_first_counts():
    model = TupleNet()
    images = torch.rand(2, 1, 8, 8)
    adapter = adapt(model, Preparation())
    assert torch.equal(output_of(adapter, images), model.eval().net(images))


@pytest.mark.parametrize("wrap", [lambda model: model, net])
def test_inputs_by_name_reach_the_network(wrap):
    model = ImageAndVector()
    adapter = adapt(wrap(model), Preparation())
    given = {"vector": torch.rand(2, 2), "image": torch.rand(2, 1, 8, 8)}
    with torch.no_grad():
        found = adapter.forward(Inputs.of(given, "image"))
        assert torch.equal(found, adapter.network(given["image"], given["vector"]))


def test_evaluation_mode_is_put_back_module_by_module():
    model = SmallNet().train()
    model.norm.eval()
    modes = [module.training for module in model.modules()]
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(module.training))
    evaluating = adapt(model, Preparation()).evaluating()
    with pytest.raises(RuntimeError, match=r"Expected 3D .* or 4D"), evaluating:
        model(IMAGES[0, 0])
    assert seen == [False]
    assert [module.training for module in model.modules()] == modes


# What outputs mean


LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.2, 0.3, 0.5], [9.0, 9.0, -9.0]])


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (LOGITS.softmax(dim=1), True),
        (LOGITS.half().softmax(dim=1), True),
        (LOGITS.bfloat16().softmax(dim=1), True),
        (torch.tensor([[0.9975, 0.0025]]).bfloat16(), True),  # which makes it .99609375
        (torch.tensor([[0.9975, 0.0005]]), False),
        (LOGITS[1:2], True),  # a sample that sums to one
        (LOGITS, False),  # though one of its rows does
        (LOGITS.sigmoid(), False),
        (LOGITS.log_softmax(dim=1), False),
        (torch.tensor([[1.5, -0.5, 0.0]]), False),  # sums to one, and is not a probability
        (torch.ones(2, 1, 4, 4), False),
    ],
)
def test_probabilities_are_recognised_in_the_sample(sample, expected):
    adapter = adapt(SmallNet(), Preparation())
    adapter.settle(Evidence(sample))
    assert adapter.gives_probabilities is expected


def test_what_the_sample_said_holds_for_every_batch():
    adapter = adapt(SmallNet(), Preparation())
    adapter.settle(Evidence(LOGITS))
    one = LOGITS[1:2]  # looks like probabilities, by itself
    assert torch.equal(adapter.probabilities(one), one.softmax(dim=1))
    adapter.settle(Evidence(LOGITS.softmax(dim=1)))
    assert torch.equal(adapter.probabilities(LOGITS), LOGITS)


def test_probabilities_are_computed_in_full_precision():
    adapter = adapt(SmallNet(), Preparation())
    adapter.settle(Evidence(LOGITS))
    half = LOGITS.half()
    found = adapter.probabilities(half)
    assert found.dtype == torch.float32
    assert torch.equal(found, half.float().softmax(dim=1))
    assert adapter.decide(half).tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: net(criterion=nn.CrossEntropyLoss),
        lambda: net(nn.Sequential(SmallNet(num_classes=3), nn.Softmax(dim=1))),  # NLLLoss
        binary_net,
        binary_likelihood_net,
    ],
)
def test_skorch_nets_are_read_by_their_own_nonlinearity(make):
    model = make()
    adapter = adapt(model, Preparation())
    output = output_of(adapter)
    adapter.settle(Evidence(output))
    output = output_of(adapter)
    found = adapter.probabilities(output)
    np.testing.assert_allclose(found.numpy(), model.predict_proba(IMAGES), rtol=1e-5)
    model.classes_inferred_ = np.arange(found.shape[1])
    assert adapter.decide(output).tolist() == model.predict(IMAGES).tolist()


@pytest.mark.parametrize("make", [binary_net, binary_likelihood_net])
def test_a_binary_net_has_an_output_for_each_class(make):
    model = make()
    own = model.module_.eval()(IMAGES).detach()
    adapter = adapt(model, Preparation())
    adapter.settle(Evidence(output_of(adapter)))
    output = output_of(adapter)
    first = 1 - own if make is binary_likelihood_net else -own
    torch.testing.assert_close(output, torch.stack([first, own], dim=1))
    assert torch.equal(adapter.own(output), own)


def test_a_binary_net_decides_by_its_threshold():
    model = binary_net()
    adapter = adapt(model, Preparation())
    adapter.settle(Evidence(torch.zeros(1)))
    second = torch.tensor([0.7, 0.5, 0.2]).logit()
    columns = torch.stack([-second, second], dim=1)
    assert adapter.decide(columns).tolist() == [1, 0, 0]
    model.set_params(threshold=0.1)
    assert adapter.decide(columns).tolist() == [1, 1, 1]


def test_labels_are_those_that_the_model_knows():
    assert adapt(SmallNet(), Preparation()).labels is None
    assert adapt(net(SmallNet(num_classes=1), NeuralNetRegressor), Preparation()).labels is None
    assert adapt(net(classes=["cat", "dog", "eel"]), Preparation()).labels[1] == "dog"


# Images


def test_float_tensors_are_the_networks_own_input():
    adapter = adapt(SmallNet().double(), Preparation(mean=0.5, std=0.1))
    X = torch.randn(2, 3, 5, 5) * 100
    dataset = adapter.dataset(X)
    assert isinstance(dataset, NetworkTensors)
    prepared = adapter.prepare(X, dataset)
    assert prepared.dtype == torch.float64
    assert torch.equal(prepared, X.double())


def test_other_images_are_resized_and_normalised():
    adapter = adapt(SmallNet(), Preparation(image_size=(4, 6), mean=0.5, std=(0.5, 0.25, 0.1)))
    X = np.full((2, 9, 9, 3), 255, dtype=np.uint8)
    dataset = adapter.dataset(X)
    ((images, (sizes, _)),) = adapter.loader(FramedItems(dataset))
    assert images.shape == (2, 3, 4, 6)
    assert sizes == [(9, 9), (9, 9)]
    prepared = adapter.prepare(images, dataset)
    assert torch.equal(prepared, normalize(images, 0.5, (0.5, 0.25, 0.1)))
    assert prepared[0, :, 0, 0].tolist() == pytest.approx([1, 2, 5])


def test_batches_are_as_large_as_asked_for_and_draw_no_numbers():
    adapter = adapt(SmallNet(), Preparation(image_size=4, batch_size=3))
    items = FramedItems(adapter.dataset(np.zeros((7, 4, 4), dtype=np.uint8)))
    before = torch.get_rng_state()
    assert [len(images) for images, _ in adapter.loader(items)] == [3, 3, 1]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_blank_is_what_the_stem_takes():
    blank = adapt(SmallNet(in_channels=5).bfloat16(), Preparation(image_size=(8, 6))).blank()
    assert blank.shape == (1, 5, 8, 6)
    assert blank.dtype == torch.bfloat16
    assert adapt(nn.Flatten(), Preparation()).blank().shape == (1, 3, 224, 224)


# In an explainer


def test_the_image_of_several_inputs_is_named_once():
    model = ImageAndVector()
    X = {"vector": torch.rand(4, 2), "image": torch.rand(4, 1, 8, 8)}
    explainer = CAMExplainer(model, target_layer="conv", image_input="image", verbose=0).fit(X)
    with torch.no_grad():
        expected = model(**X).softmax(dim=1)
    np.testing.assert_allclose(explainer.predict_proba(X), expected.numpy(), rtol=1e-5)
    assert explainer.explain(X).shape == (4, 8, 8)


def test_what_the_sample_said_survives_a_file(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(SmallNet(num_classes=3), nn.Softmax(dim=1))
    explainer = CAMExplainer(model, verbose=0).fit(IMAGES)
    assert explainer.gives_probabilities_
    sklcam.save(explainer, tmp_path / "explainer")
    loaded = sklcam.load(tmp_path / "explainer", objects={"Sequential": model})
    with torch.no_grad():
        expected = model.eval()(IMAGES)
    np.testing.assert_allclose(loaded.predict_proba(IMAGES), expected.numpy(), rtol=1e-5)
