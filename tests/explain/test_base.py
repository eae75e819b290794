"""What every explainer does: each image is opened once, and methods share the passes."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from small_networks import OF_ATTENTION, ImageAndVector, SmallNet, digits
from torch import nn
from torch.utils.data import Dataset

from sklcam import CAMExplainer, ConsistentCAMClassifier, EmbeddingCAMExplainer, EmbeddingNet
from sklcam.cam import (
    GradCAM,
    GuidedGradCAM,
    LayerCAM,
    Saliency,
    SmoothGradCAMPlusPlus,
    TopK,
    available,
)
from sklcam.explain import Explainer

N, BATCH = 12, 5  # batches of 5, 5 and 2
IMAGES = torch.randn(N, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 3
ARRAYS, Y = digits(N)

# A rule changes what a pass hands back, and needs one of its own.
RULES = {"deconvnet", "excitationbackprop", "guidedbackprop", "guidedgradcam"}
# These run the whole network on images that are changed; Ablation-CAM and
# Recipro-CAM run its head alone.
RUN_AGAIN = {
    *{"iscam", "occlusion", "rise", "scorecam", "smoothgradcam++", "sscam"},
    *{"fasterscorecam", "groupcam"},
}
ONE_PASS = sorted(set(available()) - RULES - RUN_AGAIN - OF_ATTENTION)


class Counting(Dataset):
    """Images that count how often each of them is opened."""

    def __init__(self, images, labels=None):
        self.images, self.targets = images, labels
        self.n_opened = np.zeros(len(images), int)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.n_opened[i] += 1
        return self.images[i], 0 if self.targets is None else self.targets[i]


def network(module=SmallNet, *arguments):
    torch.manual_seed(1)
    return module(*arguments).eval()


def explainer(model=None, method="gradcam", **options):
    options = {"verbose": 0, "batch_size": BATCH, **options}
    return CAMExplainer(network() if model is None else model, method, **options).fit(IMAGES)


@contextmanager
def counted(layer):
    """The number of images in each run of a layer; a hook would see what stands in for it, too."""
    runs, forward = [], layer.forward

    def run(images):
        runs.append(len(images))
        return forward(images)

    layer.forward = run
    yield runs
    del layer.forward


def assert_each_is_opened_once(X):
    """Once, and up to two images for a dry run."""
    assert X.n_opened.min() == 1
    assert X.n_opened.sum() <= N + 2


# Images


@pytest.mark.parametrize("frame", ["input", "image"])
@pytest.mark.parametrize(
    "method", ["gradcam", "scorecam", ["gradcam", "saliency", "guidedgradcam"]]
)
@pytest.mark.parametrize("images", [IMAGES, ARRAYS], ids=["tensors", "arrays"])
def test_explain_opens_each_image_once(images, method, frame):
    X, ours = Counting(images), explainer(image_size=16)
    ours.explain(X, method=method, frame=frame)
    assert_each_is_opened_once(X)


def test_so_does_all_else_that_looks_at_images():
    ours = explainer()
    for look in (
        lambda X: list(ours.iter_explain(X, frame="image")),
        lambda X: list(ours.iter_inputs(X)),
        lambda X: ours.explain(X, out=np.empty((N, 16, 16), np.float32)),
        ours.predict,
        ours.channel_weights,
        lambda X: ours.strongest_channels(X, k=1),
    ):
        X = Counting(IMAGES)
        look(X)
        assert_each_is_opened_once(X)


@pytest.mark.parametrize("kind", ["classifier", "embedding explainer", "embedding net"])
def test_explainers_of_every_kind_open_each_image_once(kind):
    options = {"image_size": 16, "max_epochs": 1, "verbose": 0, "device": "cpu", "random_state": 0}
    if kind == "embedding explainer":
        ours = EmbeddingCAMExplainer(network(), batch_size=BATCH, verbose=0)
        X = Counting(ARRAYS, Y)
        ours.fit(X)
        # The first one is looked at to tell what X is, for the dry run and for the proxies.
        assert X.n_opened[1:].tolist() == [1] * (N - 1) and X.n_opened[0] <= 6
    elif kind == "classifier":
        ours = ConsistentCAMClassifier(SmallNet, **options).fit(ARRAYS, Y)
    else:
        ours = EmbeddingNet(SmallNet, embedding_dim=4, **options).fit(ARRAYS, Y)
    X = Counting(ARRAYS)
    ours.explain(X, method=["gradcam", "layercam"])
    assert_each_is_opened_once(X)


# Passes


@pytest.mark.parametrize("frame", ["input", "image"])
def test_methods_share_one_pass_of_the_trunk(frame):
    ours = explainer()
    with counted(ours.model[0]) as runs:
        shared = ours.explain(IMAGES, method=ONE_PASS, frame=frame)
    assert runs == [5, 5, 2]
    assert list(shared) == ONE_PASS
    for name, maps in shared.items():
        if name != "randomcam":  # which draws anew
            alone = ours.explain(IMAGES, method=name, frame=frame)
            assert_allclose(maps, alone, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", sorted(RUN_AGAIN))
def test_what_runs_the_network_again_starts_from_the_shared_pass(name):
    ours = explainer(batch_size=N)
    with counted(ours.model[0]) as alone:
        ours.explain(IMAGES, method=name)
    with counted(ours.model[0]) as shared:
        ours.explain(IMAGES, method=["gradcam", name, "ablationcam", "saliency"])
    assert shared == alone and shared[0] == N


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_has_a_pass_of_its_own(name):
    ours = explainer(batch_size=N)
    with counted(ours.model[0]) as runs:
        maps = ours.explain(IMAGES, method=["gradcam", name, "saliency"])
    assert runs == [N, N]
    for method, found in maps.items():
        assert_array_equal(found, ours.explain(IMAGES, method=method), err_msg=method)


@pytest.mark.parametrize("target", [None, TopK(2), np.arange(N) % 3, lambda output: output[:, 1]])
@pytest.mark.parametrize("layers", ["auto", ["2", "5"]])
def test_shared_maps_are_those_of_each_method(target, layers):
    methods = {
        "signed": GradCAM(relu=False),
        "pixels": Saliency(channels="keep"),
        "score": "scorecam",
        "guided": GuidedGradCAM(channels="keep"),
        "smooth": SmoothGradCAMPlusPlus(n_samples=2, random_state=0),
        "ablation": "ablationcam",
        "layer": LayerCAM,
    }
    ours = explainer(target_layer=layers)
    shared = ours.explain(IMAGES, target, method=methods)
    assert list(shared) == list(methods)
    for name, method in methods.items():
        alone = ours.explain(IMAGES, target, method=method)
        assert shared[name].shape == alone.shape
        assert_allclose(shared[name], alone, atol=1e-5 * np.abs(alone).max(), err_msg=name)


class Undecided(SmallNet):
    """Its two classes change places with every pass, as those of a tie may by rounding."""

    def __init__(self):
        super().__init__(2)
        self.n_passes = 0

    def forward(self, x):
        self.n_passes += 1
        return super().forward(x) + torch.tensor([[0.0, 100.0 * (-1) ** self.n_passes]])


def test_all_methods_explain_what_the_first_pass_decided_on():
    ours = explainer(network(Undecided), batch_size=N)
    maps, output, target = ours.explain_batch(
        IMAGES, methods=["gradcam", GradCAM(gradient="guided"), "guidedbackprop"]
    )
    assert_array_equal(target.indices[:, 0], output.argmax(1) * 0 + target.indices[0, 0])
    index = target.indices[0, 0].item()
    for method, found in zip(("gradcam", GradCAM(gradient="guided")), maps, strict=False):
        assert_allclose(found, ours.explain(IMAGES, index, method=method), atol=1e-6)


# Names of methods


def test_several_methods_come_by_name():
    ours = explainer()
    by_list = ours.explain(IMAGES, method=["layercam", GradCAM(relu=False), LayerCAM])
    assert list(by_list) == ["layercam", "GradCAM(relu=False)", "LayerCAM"]
    by_dict = ours.explain(IMAGES, method={"a": None, 3: "layercam"})
    assert list(by_dict) == ["a", "3"]
    assert_array_equal(by_dict["a"], ours.explain(IMAGES))
    assert_array_equal(by_dict["3"], by_list["layercam"])
    assert list(ours.explain(IMAGES, method=("gradcam",))) == ["gradcam"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (["gradcam", "gradcam"], "share a name: .'gradcam', 'gradcam'"),
        ([], "no method to explain with"),
        ({}, "no method to explain with"),
        (["gradcam", "gradcm"], "Did you mean: gradcam"),
    ],
)
def test_methods_that_cannot_be(method, message):
    with pytest.raises(ValueError, match=message):
        explainer().explain(IMAGES, method=method)


def test_out_is_for_one_method():
    ours, out = explainer(), np.empty((N, 16, 16), np.float32)
    assert ours.explain(IMAGES, out=out) is out
    with pytest.raises(ValueError, match="one method; got 2 methods"):
        ours.explain(IMAGES, method=["gradcam", "layercam"], out=out)


# The protocol


def test_batches_bring_all_that_is_known_of_them():
    ours = explainer(image_size=16)
    opened = ours.open(ARRAYS, originals=True)
    batches = list(ours.iter_explained(opened, methods=["gradcam", "layercam"]))
    assert [(b.batch.start, b.batch.stop, len(b.batch)) for b in batches] == [
        (0, 5, 5),
        (5, 10, 5),
        (10, 12, 2),
    ]
    for found in batches:
        rows = slice(found.batch.start, found.batch.stop)
        assert found.batch.sizes == [(8, 8)] * len(found.batch)
        for original, array in zip(found.batch.originals, ARRAYS[rows], strict=True):
            assert_allclose(original[0], array, atol=1 / 255)
        assert_array_equal(found.target.indices[:, 0], ours.decide(found.output))
        assert_array_equal(ours.classes_[ours.decide(found.output)], ours.predict(ARRAYS[rows]))
        for maps, method in zip(found.maps, ("gradcam", "layercam"), strict=True):
            assert_allclose(maps, ours.explain(ARRAYS[rows], method=method), atol=1e-6)


def test_a_subset_of_what_is_open():
    ours = explainer()
    opened = ours.open(IMAGES).subset([7, 1, 4]).subset(np.array([2, 0]))
    (batch,) = opened.batches()
    assert len(opened) == 2
    assert torch.equal(batch.inputs.images, IMAGES[[4, 7]])


@pytest.mark.parametrize("target", [None, TopK(2), np.zeros((N, 3), int)])
@pytest.mark.parametrize("fusion", ["mean", None])
@pytest.mark.parametrize("method", ["gradcam", Saliency(channels="keep"), "uniform"])
def test_the_shape_of_a_map_is_known_before(target, fusion, method):
    ours = explainer(target_layer=["2", "5"], layer_fusion=fusion)
    opened = ours.open(IMAGES)
    shape = ours.map_shape(opened, ours.as_target(target, N), ours.as_method(method))
    assert ours.explain(IMAGES, target, method=method).shape == (N, *shape)


def test_what_explains_says_so():
    ours = explainer()
    assert isinstance(ours, Explainer) and ours.as_explainer() is ours
    net = EmbeddingNet(SmallNet, embedding_dim=4, image_size=16, max_epochs=1, verbose=0)
    for unfitted in (CAMExplainer(SmallNet()), ConsistentCAMClassifier(SmallNet), net):
        with pytest.raises(NotFittedError):
            unfitted.as_explainer()
    net.fit(ARRAYS, Y)
    assert_array_equal(net.as_explainer().explain(ARRAYS), net.explain(ARRAYS))


# Several inputs


def two_inputs(images):
    vectors = torch.randn(len(images), 2, generator=torch.Generator().manual_seed(3))
    return {"image": images, "vector": vectors}


@pytest.mark.parametrize("frame", ["input", "image"])
def test_other_inputs_share_the_pass_and_the_look_at_the_image(frame):
    model, images = network(ImageAndVector), Counting(IMAGES)
    ours = CAMExplainer(
        model, target_layer="conv", image_input="image", batch_size=BATCH, verbose=0
    )
    ours.fit(two_inputs(IMAGES))
    methods = ["gradcam", "saliency", "ablationcam"]
    with counted(model.conv) as runs:
        shared = ours.explain(two_inputs(images), method=methods, frame=frame)
    assert runs == [5, 5, 2]
    assert_each_is_opened_once(images)
    for name in methods:
        alone = ours.explain(two_inputs(IMAGES), method=name, frame=frame)
        assert_allclose(shared[name], alone, atol=1e-6)


class Gated(nn.Module):
    """Embeds by two channels, the mean of each times a gate."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, image, gate):
        return self.layer(image).mean((2, 3)) * gate


def test_a_target_sees_the_other_inputs():
    images = torch.tensor([[[[0.0, 2.0]], [[4.0, 0.0]]], [[[6.0, 0.0]], [[0.0, 8.0]]]])
    X = {"image": images, "gate": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    ours = CAMExplainer(Gated(), target_layer="layer", image_input="image", batch_size=1, verbose=0)
    maps = ours.fit(X).explain(
        X, lambda output, inputs: output[:, 0] * inputs["gate"][:, 1], normalize=False
    )
    # The first channel, by half of the one gate times the other: 1 and 6.
    assert maps.tolist() == [[[0.0, 2.0]], [[36.0, 0.0]]]
