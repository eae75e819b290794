"""What says nothing is not silent: blank maps, and NaN in maps, weights and predictions."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from small_networks import OF_ATTENTION, SmallNet
from torch import nn

from sklcam import CAMExplainer, ConsistentCAMClassifier, EmbeddingCAMExplainer
from sklcam.cam import ExcitationBackprop, GradCAM, Saliency, TopK, available, min_max
from sklcam.explain import ExplanationCheck, ExplanationWarning
from sklcam.explain.predictions import predictions
from sklcam.metrics import Evaluator, evaluate

X = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
CONTROLS = {"fakecam", "uniform"}  # are what they are, whatever the network


def head(*weights: float) -> nn.Sequential:
    """A network of two channels, the image and twice the image, pooled and weighed."""
    net = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(2, len(weights), bias=False),
    ).eval()  # fmt: skip
    net[0].weight.data = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1)
    net[4].weight.data = torch.tensor(weights)[:, None].repeat(1, 2)
    return net


def explainer(network, **options):
    task = "auto" if network(X[:1]).shape[1] > 1 else "regression"
    options = {"target_layer": "1", "task": task, "batch_size": 2, "verbose": 0, **options}
    return CAMExplainer(network, **options).fit(X[:1])


def broken(value: float) -> nn.Sequential:
    """A network with one weight that is not a number, or infinite."""
    torch.manual_seed(0)
    network = SmallNet(3, 1).eval()
    network[0].weight.data[0, 0, 0, 0] = value
    return network


@pytest.fixture
def warned():
    """The messages of all ExplanationWarnings; other warnings are errors."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        messages: list[str] = []
        yield (
            lambda: (
                messages[len(messages) :]
                + [str(each.message) for each in caught if each.category is ExplanationWarning]
            )
        )


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", sorted(set(available()) - CONTROLS - OF_ATTENTION))
def test_a_weight_that_is_nan_makes_maps_nan_and_warns_once(method, value, warned):
    maps = explainer(broken(value), target_layer="4").explain(X, target=0, method=method)
    assert np.isnan(maps).all()
    assert len(warned()) == 1 and warned()[0].startswith("5 of 5 maps are NaN or infinite")


@pytest.mark.parametrize("fusion", ["mean", "max", None])
def test_nan_survives_the_fusion_of_layers(fusion, warned):
    both = explainer(broken(np.nan), target_layer=["1", "4"], layer_fusion=fusion)
    assert np.isnan(both.explain(X)).all()
    assert len(warned()) == 1


def test_one_image_that_is_nan_is_counted_alone(warned):
    images = X.clone()
    images[3, 0, 0, 0] = 3e38  # twice that is infinite
    maps = explainer(head(1.0, 2.0)).explain(images, target=1)
    assert_array_equal(np.isnan(maps).any(axis=(1, 2)), [False, False, False, True, False])
    assert warned()[0].startswith("1 of 5 maps are NaN or infinite")


def test_nan_predictions_warn_and_keep_their_nan(warned):
    fitted = explainer(broken(np.nan))
    assert np.isnan(fitted.predict_proba(X)).all()
    fitted.predict(X)
    assert [m[:44] for m in warned()] == ["5 of 5 outputs of the network are NaN or inf"] * 2
    shown = predictions(fitted, torch.tensor([[0.0, 1.0, 0.0], [torch.nan, 1.0, 0.0]]))
    assert [each.label for each in shown] == ["1", "NaN"]
    assert np.isnan(shown[1].probability)


def test_a_classifier_with_nan_weights_warns(warned):
    images = X[:, 0].numpy()
    clf = ConsistentCAMClassifier(SmallNet, max_epochs=0, image_size=16, verbose=0, device="cpu")
    clf.fit(images, [0, 1, 2, 0, 1])
    clf.predict(images)
    assert not warned()
    clf.module_[0].weight.data[0] = torch.nan
    assert np.isnan(clf.predict_proba(images)).all()
    clf.predict(images)
    assert [m[:44] for m in warned()] == ["5 of 5 outputs of the network are NaN or inf"] * 2


def test_nan_weights_of_channels_warn(warned):
    assert np.isnan(explainer(head(np.nan)).channel_weights(X, target=0)).all()
    assert warned()[0].startswith("5 of 5 rows of weights are NaN or infinite")


def test_min_max_takes_neither_nan_nor_inf_for_a_constant():
    maps = torch.tensor([[[0.0, 1.0]], [[0.0, torch.nan]], [[0.0, torch.inf]], [[-torch.inf, 0.0]]])
    assert_array_equal(min_max(maps), [[[0, 1]], [[np.nan] * 2], [[np.nan] * 2], [[np.nan] * 2]])
    assert_array_equal(min_max(torch.full((1, 2, 2), torch.inf)), np.full((1, 2, 2), np.nan))


# Blank maps


def test_blank_maps_warn_once_in_a_call(warned):
    fitted = explainer(head(-1.0, 2.0))
    assert not fitted.explain(X, target=0).any()
    assert len(warned()) == 1  # of three batches
    assert warned()[0].startswith("5 of 5 maps are blank: nothing in the image speaks for")


def test_no_warning_where_maps_say_something(warned):
    fitted = explainer(head(-1.0, 2.0))
    fitted.explain(X, target=1)
    fitted.explain(X, target=0, method=GradCAM(relu=False))
    fitted.explain(X, target=0, method=Saliency("keep"))
    fitted.explain(X, target=0, method=sorted(CONTROLS))
    fitted.explain_inputs(X, torch.tensor([1] * 5))
    fitted.predict(X)
    assert not warned()


def test_images_without_evidence_are_counted(warned):
    images = X.clone()
    images[[0, 4]] = 0
    explainer(head(1.0, 2.0)).explain(images, target=1)
    assert warned()[0].startswith("2 of 5 maps are blank")


def test_maps_of_several_classes_and_methods_count_one_by_one(warned):
    fitted = explainer(head(1.0, -1.0))
    fitted.explain(X, target=TopK(2), method=["gradcam", "saliency"])
    # The gradient at the image is the same everywhere: scaled to [0, 1], it is blank.
    assert warned()[0].startswith(
        "5 of 10 maps by GradCAM(), 10 of 10 maps by Saliency() are blank"
    )


def test_maps_that_are_not_scaled_are_blank_if_they_are_zero(warned):
    fitted = explainer(head(-1.0))
    fitted.explain(X, target=0, method="saliency", normalize=False)
    assert not warned()
    fitted.explain(X, target=0, normalize=False)
    assert len(warned()) == 1


def test_iter_explain_warns_after_the_last_batch_or_where_it_is_left(warned):
    batches = explainer(head(-1.0)).iter_explain(X, target=0)
    next(batches)
    assert not warned()
    list(batches)
    assert warned()[0].startswith("5 of 5")
    batches = explainer(head(-1.0)).iter_explain(X, target=0)
    next(batches)
    del batches
    assert warned()[1].startswith("2 of 2")


def test_explain_inputs_warns_and_explain_batch_leaves_it_to_its_caller(warned):
    fitted, target = explainer(head(-1.0)), torch.zeros(5, dtype=torch.int64)
    fitted.explain_batch(X, target, methods=["gradcam"])
    assert not warned()
    fitted.explain_inputs(X, target)
    assert len(warned()) == 1


def test_embeddings_warn(warned):
    network = head(1.0, 2.0)
    fitted = EmbeddingCAMExplainer(network, target_layer="1", verbose=0, proxy=[[-1.0, -1.0]])
    assert not fitted.fit(X).explain(X).any()
    assert len(warned()) == 1


def test_counting_does_not_wait_for_the_device(monkeypatch):
    """Reading a number is what waits: it happens once for each kind, in ``warn``."""
    reads = []
    for name in ("item", "tolist", "__bool__", "__int__"):
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda *args, read=read, name=name: reads.append(name) or read(*args),
        )
    check = ExplanationCheck()
    for _ in range(10):
        check.add(torch.ones(3, 4, 4))
    assert not reads
    check.warn()
    assert reads == ["tolist"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": GradCAM(relu="no")}, "relu must be True or False; got 'no'"),
        ({"method": ExcitationBackprop(contrastive=None)}, "contrastive must be True or False"),
        ({"normalize": "no"}, "normalize must be True or False, .* got 'no'"),
        ({"normalize": [True, False]}, "normalize must be True or False, or one of these per"),
    ],
)
def test_what_is_neither_true_nor_false_is_not_taken_for_true(options, match):
    with pytest.raises(ValueError, match=match):
        explainer(head(1.0)).explain(X, **options)


def test_warnings_point_to_the_line_that_called_the_library():
    """However deep in the library they come from, and out of a generator or not."""
    blank = explainer(head(-1.0, -2.0))
    evaluator = Evaluator(blank, X, metrics=("sparsity", "consistency"))
    calls = (
        lambda: blank.explain(X),
        lambda: list(blank.iter_explain(X)),
        lambda: evaluator.run(progress=False),
        lambda: evaluator.run_each(progress=False),
        lambda: evaluate(blank, 0 * X, metrics="consistency", progress=False),
        lambda: Evaluator(blank, 0 * X, metrics="consistency").run_each(progress=False),
    )
    for call in calls:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            call()
        assert warned and {each.filename for each in warned} == {__file__}


def test_warnings_of_training_point_to_the_call_of_fit():
    """Those from within skorch's loop as well, here that the loss is infinite."""
    options = {"image_size": 16, "alpha": 0, "beta": 0, "max_epochs": 2, "train_split": None}
    net = ConsistentCAMClassifier(SmallNet, lr=1e30, device="cpu", verbose=0, **options)
    images = np.zeros((6, 16, 16), np.uint8)
    images[::2] = 1
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        net.fit(images, [0, 1] * 3, masks=images.astype(bool))
    said = "masks and boxes are not used|X has bytes|The loss is "
    of_fit = [each for each in warned if re.match(said, str(each.message))]
    assert len({str(each.message)[:6] for each in of_fit}) == 3
    assert {each.filename for each in of_fit} == {__file__}
