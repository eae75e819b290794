"""The explainer: against Grad-CAM in plain torch, skorch's predictions, and one image at a time."""

from __future__ import annotations

import copy
import gc
from contextlib import contextmanager
from functools import partial

import joblib
import numpy as np
import pytest
import torch
import torchvision
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from rounding import assert_close_maps
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from small_networks import (
    DropoutNet,
    FailingNet,
    Flattening,
    ImageAndVector,
    SmallNet,
    TokenNet,
    TupleNet,
    Viewing,
    digits,
)
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms.v2.functional import pil_to_tensor

from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.cam import (
    AblationCAM,
    GradCAM,
    GradientMethod,
    LayerCAM,
    Occlusion,
    Saliency,
    ScoreCAM,
    TopK,
    Uniform,
    WeightedGradientMethod,
    available,
)
from sklcam.images import ImageDataset, map_to_frame, normalize
from sklcam.metrics import evaluate
from sklcam.networks import TargetLayer

N = 7
ARRAYS, Y = digits(N)
IMAGES = torch.randn(N, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 3  # any range
LABELS = [0, 2, 1, 1, 0, 2, 2]


def network(module=SmallNet, *arguments, **options):
    torch.manual_seed(1)
    return module(*arguments, **options).eval()


def explainer(model=None, method="gradcam", *, X=IMAGES, y=None, **options):
    """A fitted one, whose batches do not divide the number of images."""
    options = {"verbose": 0, "batch_size": 3, **options}
    return CAMExplainer(network() if model is None else model, method, **options).fit(X, y)


def plain_run(model, names, *inputs):
    """Output and layers of a pass with a graph to the parameters, as anyone would write it."""
    kept = {}

    def keep(name):
        def hook(module, arguments, output):
            kept[name] = output
            return output.clone()  # for the in-place ReLUs that follow

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        output = model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return output, [kept[name] for name in names]


def scaled(maps):
    """Each map to [0, 1], written for NumPy."""
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    return (maps - low) / np.where(high > low, high - low, 1)


def plain_weights(model, images, score, layer="5", *others):
    output, (activations,) = plain_run(model, [layer], images, *others)
    (gradient,) = torch.autograd.grad(score(output).sum(), activations)
    return gradient.mean((2, 3)), activations


def plain_grad_cam(model, images, score, layer="5", *others, grid=lambda tensor: tensor):
    """Unscaled maps at the input's size, eq. 1 and 2 of the paper."""
    output, (activations,) = plain_run(model, [layer], images, *others)
    (gradient,) = torch.autograd.grad(score(output).sum(), activations)
    alpha = grid(gradient).mean((2, 3), keepdim=True)
    maps = (alpha * grid(activations)).sum(1, keepdim=True).relu()
    maps = nn.functional.interpolate(maps, images.shape[2:], mode="bilinear")
    return maps[:, 0].detach().numpy()


def predicted(output):
    return output.max(1).values


def of_class(classes):
    return lambda output: output[range(len(output)), classes]


@contextmanager
def counted(model):
    """The number of images in each forward pass."""
    passes = []

    def count(module, args, kwargs):
        passes.append(len([*args, *kwargs.values()][0]))

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    yield passes
    handle.remove()


@contextmanager
def inputs_of(model):
    """What the network is given."""
    given = []
    handle = model.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    yield given
    handle.remove()


def net(module, images, y, kind=NeuralNetClassifier, **options):
    torch.manual_seed(2)
    return kind(
        module, max_epochs=1, lr=0.1, train_split=None, batch_size=4, verbose=0, **options
    ).fit(images, y)


def cross_entropy_net():
    return net(SmallNet, IMAGES, Y, criterion=nn.CrossEntropyLoss)


def likelihood_net():
    """skorch's default loss, for a module that ends in probabilities."""
    return net(nn.Sequential(SmallNet(), nn.Softmax(dim=1)), IMAGES, Y)


def binary_net(module=None, **options):
    y = (Y > 0).astype(np.float32)
    return net(module or SmallNet(1), IMAGES, y, NeuralNetBinaryClassifier, **options)


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
    with pytest.raises(ValueError, match="give fit an X"):
        explainer(model, X=None)
    with pytest.raises(ValueError, match="give fit an X"):
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
    with pytest.raises(ValueError, match="3 outputs, and 2 labels for them"):
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


# What X may be


class ListDataset(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def with_labels():
    return ListDataset([(image, label) for image, label in zip(IMAGES, LABELS, strict=True)])


@pytest.mark.parametrize(
    "make",
    [
        lambda: IMAGES,
        lambda: IMAGES.clone().requires_grad_(),
        lambda: IMAGES.double(),
        lambda: IMAGES.flip(0).flip(0).to(memory_format=torch.channels_last),
        lambda: TensorDataset(IMAGES),
        lambda: TensorDataset(IMAGES, torch.tensor(LABELS)),
        with_labels,
        lambda: ListDataset(list(IMAGES)),
    ],
)
def test_float_tensors_are_the_networks_input(make):
    model = network()
    ours = explainer(model, image_size=8, mean=0.1, std=7.0)  # for others
    with inputs_of(model) as given:
        maps = ours.explain(make(), LABELS)
    torch.testing.assert_close(torch.cat(given), IMAGES, rtol=0, atol=0)
    expected = plain_grad_cam(model, IMAGES, of_class(LABELS))
    assert_allclose(maps, scaled(expected), atol=1e-5)


def test_a_data_set_of_torchvision():
    data = torchvision.datasets.FakeData(4, (3, 12, 12), 3, pil_to_tensor)
    floats = torchvision.datasets.FakeData(4, (3, 12, 12), 3, torchvision.transforms.ToTensor())
    model = network(SmallNet, in_channels=3)
    ours = explainer(model, X=data, image_size=16)
    pixels = torch.stack([image for image, _ in data])
    with inputs_of(model) as given:
        ours.explain(floats)
        ours.explain(data)
    torch.testing.assert_close(torch.cat(given[:2]), pixels / 255)
    torch.testing.assert_close(torch.cat(given[2:]), prepared(pixels), rtol=1e-5, atol=1e-5)


def prepared(X, size=16, mean=None, std=None):
    images = torch.stack([ImageDataset(X, image_size=size)[i][0] for i in range(len(X))])
    if len(images[0]) == 3:
        imagenet = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
        return normalize(images, mean or imagenet.mean, std or imagenet.std)
    return normalize(images, mean or 0.449, std or 0.226)  # of ImageNet's colours


COLOURS = np.random.default_rng(0).integers(0, 256, (4, 12, 10, 3), dtype=np.uint8)
FORMS = {
    "floats": lambda path: ARRAYS,
    "float32": lambda path: ARRAYS.astype(np.float32),
    "uint8": lambda path: (ARRAYS * 255).astype(np.uint8),
    "tensor": lambda path: torch.from_numpy(COLOURS).permute(0, 3, 1, 2),
    "colours": lambda path: COLOURS,
    "pil": lambda path: [Image.fromarray(image) for image in COLOURS],
    "files": lambda path: files(path),
    "array of files": lambda path: np.array([str(name) for name in files(path)]),
    "data set": lambda path: ListDataset([(Image.fromarray(image), "a") for image in COLOURS]),
}


def files(path, images=COLOURS):
    names = [path / f"{i}.png" for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(name)
    return names


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("statistics", [{}, {"mean": 0.3, "std": 0.7}])
def test_images_are_prepared(form, statistics, tmp_path):
    X = FORMS[form](tmp_path)
    inputs = prepared(X, **statistics)
    model = network(SmallNet, in_channels=inputs.shape[1])
    ours = explainer(model, X=X, image_size=16, **statistics)
    with inputs_of(model) as given:
        maps = ours.explain(X)
    torch.testing.assert_close(torch.cat(given), inputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat(list(ours.iter_inputs(X))), torch.cat(given))
    assert_allclose(maps, scaled(plain_grad_cam(model, inputs, predicted)), atol=1e-4)


def test_image_size_default_is_imagenets():
    (inputs,) = explainer(X=ARRAYS[:1]).iter_inputs(ARRAYS[:1])
    assert inputs.shape == (1, 1, 224, 224)


def not_a_number():
    images = IMAGES.clone()
    images[5, 0, 3, 3] = float("nan")
    return images


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IMAGES[0], "shape"),
        (lambda: IMAGES[0].mul(255).byte(), "shape"),
        (lambda: IMAGES[:0], "empty"),
        (lambda: np.zeros((0, 8, 8)), "empty"),
        (lambda: ListDataset([]), "empty"),
        (not_a_number, "NaN"),
        (lambda: not_a_number().nan_to_num(float("inf")), "infinite"),
        (lambda: ListDataset(list(not_a_number())), "NaN"),
        (lambda: ListDataset([*IMAGES, torch.zeros(1, 16, 15)]), "one shape"),
        (lambda: ListDataset([*IMAGES, torch.zeros(1, 8, 8)]), "one shape"),
        (lambda: ListDataset([torch.zeros(16, 16)]), "shape"),
        (lambda: IMAGES.long(), "dtype"),
        (lambda: np.repeat(ARRAYS[:, None], 3, axis=1), "channels first"),
        (lambda: ARRAYS * 16, "divide by the largest value"),
        (lambda: "image.png", "X"),
        (lambda: ["none.png"], "do not exist"),
        (lambda: {"image": IMAGES}, r"does not take inputs by the names \['image'\]"),
        (lambda: {"label": IMAGES[:, 0, 0, 0]}, "image_input must name"),
    ],
)
def test_wrong_images(make, message):
    with pytest.raises(ValueError, match=message):
        explainer(image_size=16).explain(make())
    with pytest.raises(ValueError, match=message):
        list(explainer(image_size=16).iter_explain(make()))


@pytest.mark.parametrize("resize", ["stretch", "center_crop"])
def test_maps_in_the_frame_of_each_image(resize, tmp_path):
    sizes = [(12, 20), (20, 12), (9, 9), (16, 16)]
    images = [np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    X = files(tmp_path, images)
    ours = explainer(network(SmallNet, in_channels=3), X=X, image_size=16, resize=resize)
    maps = torch.from_numpy(ours.explain(X))
    framed = ours.explain(X, frame="image")
    assert [map_.shape for map_ in framed] == sizes
    for map_, of_image, size in zip(maps, framed, sizes, strict=True):
        expected = map_to_frame(map_, size, resize=resize)
        assert_allclose(of_image, expected, atol=1e-6)
    batches = list(ours.iter_explain(X, frame="image"))
    assert [len(batch) for batch in batches] == [3, 1]
    for ours_, theirs in zip(framed, batches[0] + batches[1], strict=True):
        assert_array_equal(ours_, theirs)
    of_array = explainer(image_size=16).explain(ARRAYS, TopK(2), frame="image")
    assert of_array.shape == (N, 2, 8, 8)
    with pytest.raises(ValueError, match="frame"):
        ours.explain(X, frame="pixels")
    with pytest.raises(ValueError, match="frame"):
        ours.explain(X, frame="image", out=np.empty((4, 16, 16)))


def test_what_holds_the_maps_of_images_of_one_size(tmp_path):
    """As the docstring says: an array if X cannot hold others, and else a list."""
    paths = files(tmp_path, [*np.random.default_rng(0).integers(0, 256, (2, 12, 9, 3), np.uint8)])
    pictures = [Image.open(path) for path in paths]
    array = np.stack([*map(np.asarray, pictures)])
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    ours = explainer(network(SmallNet, in_channels=3), X=paths, image_size=16)
    of_one_size = [array, tensor, ImageDataset(array), ImageDataset(array)[1:]]
    for X in (*of_one_size, TensorDataset(tensor.float() / 255)):
        assert ours.explain(X, frame="image").shape == (len(X), 12, 9)
    for X in (paths, np.array(paths), pictures, ImageDataset(paths), TensorDataset(tensor)):
        maps = ours.explain(X, frame="image")
        assert isinstance(maps, list) and np.stack(maps).shape == (2, 12, 9)
    for X in (array, paths):
        assert all(isinstance(maps, list) for maps in ours.iter_explain(X, frame="image"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_networks_keep_their_precision(dtype):
    model = network().to(dtype)
    ours = explainer(model, image_size=16)
    with inputs_of(model) as given:
        maps = ours.explain(IMAGES, LABELS)
        ours.explain(ARRAYS)
    assert {inputs.dtype for inputs in given} == {dtype}
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    reference = scaled(plain_grad_cam(network(), IMAGES, of_class(LABELS)))
    assert_allclose(maps, reference, atol=1e-5 if dtype == torch.float64 else 0.15)
    probabilities = ours.predict_proba(IMAGES)
    assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    assert_allclose(probabilities, network()(IMAGES).softmax(1).detach(), atol=0.02)


# Several inputs


VECTORS = torch.randn(N, 2, generator=torch.Generator().manual_seed(3))
SEVERAL = {"vector": VECTORS, "image": IMAGES}
SEVERAL_OPTIONS = {"X": SEVERAL, "image_input": "image", "target_layer": "conv"}


class Bound(nn.Module):
    """The network with its vector fixed: one input."""

    def __init__(self, model, vector):
        super().__init__()
        self.model, self.vector = model, vector

    def forward(self, image):
        return self.model(image, self.vector.expand(len(image), -1))


@pytest.mark.parametrize("kind", ["module", "skorch"])
@pytest.mark.parametrize(
    "method",
    ["gradcam", ScoreCAM(batch_size=5), AblationCAM(), Occlusion(patch=4, stride=4), "saliency"],
    ids=lambda method: str(method).split("(")[0],
)
def test_other_inputs_follow_their_image(kind, method):
    if kind == "module":
        model = module = network(ImageAndVector)
    else:
        model = net(ImageAndVector, SEVERAL, Y, criterion=nn.CrossEntropyLoss)
        module = model.module_
    ours = explainer(model, method, **SEVERAL_OPTIONS)
    maps, raw = (ours.explain(SEVERAL, LABELS, normalize=normalize) for normalize in (True, False))
    scores = module(IMAGES, VECTORS).detach().abs().numpy()
    for i in range(N):
        alone = explainer(Bound(module, VECTORS[i]), method, target_layer="model.conv")
        of_image = alone.explain(IMAGES[i : i + 1], LABELS[i], normalize=False)[0]
        size = max(raw[i].max(), scores.max())  # of an occlusion's terms, which are scores
        if isinstance(method, AblationCAM):  # divides by the score, whose terms may cancel
            size *= scores.max() / scores[i, LABELS[i]]
        assert_close_maps(raw[i], of_image, size)
    if method == "gradcam":
        expected = plain_grad_cam(module, IMAGES, of_class(LABELS), "conv", VECTORS)
        assert_allclose(maps, scaled(expected), atol=1e-5)
        logits = module(IMAGES, VECTORS).detach()
        assert_allclose(ours.predict_proba(SEVERAL), logits.softmax(1), atol=1e-6)
        assert_array_equal(ours.predict(SEVERAL), logits.argmax(1))
        assert_array_equal(ours.explain({**SEVERAL, "vector": VECTORS.numpy()}, LABELS), maps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_other_inputs_get_the_networks_precision(dtype):
    ours = explainer(network(ImageAndVector).to(dtype), **SEVERAL_OPTIONS)
    maps = ours.explain({"image": IMAGES, "vector": VECTORS.double().numpy()}, LABELS)
    expected = explainer(network(ImageAndVector), **SEVERAL_OPTIONS).explain(SEVERAL, LABELS)
    assert_allclose(maps, expected, atol=0.1 if dtype == torch.bfloat16 else 1e-5)


def test_wrong_dicts():
    ours = explainer(network(ImageAndVector), **SEVERAL_OPTIONS)
    for X, message in (
        ({"vector": VECTORS}, "must name"),
        ({**SEVERAL, "vector": VECTORS[:3]}, r"7 images; it has shape \(3, 2\)"),
        ({**SEVERAL, "vector": None}, "one entry for each"),
        ({**SEVERAL, "vector": torch.tensor(1.0)}, "one entry for each"),
        ({**SEVERAL, "image": not_a_number()}, "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.explain(X)
    with pytest.raises(ValueError, match="must name"):
        explainer(network(ImageAndVector), **{**SEVERAL_OPTIONS, "image_input": "picture"})


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


# Layers


@pytest.mark.parametrize("method", [GradCAM, LayerCAM])
def test_several_layers(method):
    model, names = network(), ["2", "3", "5"]
    for normalized in (True, False):
        each = np.stack(
            [
                explainer(model, method, target_layer=name).explain(IMAGES, normalize=normalized)
                for name in names
            ],
            axis=1,
        )
        finish = scaled if normalized else (lambda maps: maps)
        for fusion, expected in (
            ("mean", finish(each.mean(1))),
            ("max", finish(each.max(1))),
            (None, each),
        ):
            ours = explainer(model, method, target_layer=names, layer_fusion=fusion)
            with counted(model) as passes:
                maps = ours.explain(IMAGES, normalize=normalized)
            assert passes == [3, 3, 1]
            assert_allclose(maps, expected, atol=1e-5)
    single = explainer(model, method, target_layer=["5"], layer_fusion=None)
    assert single.explain(IMAGES).shape == IMAGES[:, 0].shape


def by_hand(tensor):
    return tensor[:, 1:].transpose(1, 2).reshape(len(tensor), -1, 4, 4)


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "ablationcam", "scorecam"])
def test_reshape(method):
    model = network(TokenNet)
    layer = TargetLayer("norm", layout="tokens", grid=(4, 4), n_prefix=1)
    by_layout = explainer(model, method, target_layer=layer)
    ours = explainer(model, method, target_layer="norm", reshape=by_hand)
    assert_array_equal(ours.explain(IMAGES), by_layout.explain(IMAGES))
    if method == "gradcam":
        expected = plain_grad_cam(model, IMAGES, predicted, "norm", grid=by_hand)
        assert_allclose(ours.explain(IMAGES), scaled(expected), atol=1e-5)
    if method == "ablationcam":
        assert_allclose(ours.channel_weights(IMAGES), ablated_by_hand(model), rtol=1e-3, atol=1e-5)


def ablated_by_hand(model):
    """Eq. 3 of the paper, by a hook that empties one channel at a time."""
    full, classes = model(IMAGES).max(1)
    falls = []
    for channel in range(6):
        keep = torch.ones(6).index_fill(0, torch.tensor(channel), 0)
        handle = model.norm.register_forward_hook(lambda _, __, out, keep=keep: out * keep)
        falls.append((full - of_class(classes)(model(IMAGES))) / full.abs())
        handle.remove()
    return torch.stack(falls, 1).detach()


@pytest.mark.parametrize(
    ("reshape", "message"),
    [
        (lambda tensor: tensor, "reshape must turn the output of 'norm'"),
        (lambda tensor: by_hand(tensor)[:1], "'norm' gives 1 rows, .* for 3 images"),
        (lambda tensor: tensor.shape, "reshape must turn the output of 'norm'"),
    ],
)
def test_wrong_reshape(reshape, message):
    with pytest.raises(ValueError, match=message):
        explainer(network(TokenNet), target_layer="norm", reshape=reshape).explain(IMAGES)


def test_a_single_position_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    pooled = TargetLayer("1")
    with pytest.raises(ValueError, match="'1' has a single position for images of 16 x 16 pixels"):
        CAMExplainer(model, target_layer=pooled).fit(IMAGES)
    with pytest.raises(ValueError, match=r"'1' .* several positions"):
        CAMExplainer(model, target_layer="1").fit(IMAGES)
    CAMExplainer(model, target_layer="0").fit(IMAGES)
    CAMExplainer(model, target_layer=pooled, method="saliency").fit(IMAGES)  # needs no layer


def test_pixels_are_explained_where_no_layer_is_a_grid():
    model = network(lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Linear(8, 3)))
    with pytest.raises(ValueError, match="needs a layer with a spatial output"):
        explainer(model)
    ours = explainer(model, method="saliency")
    assert ours.target_layers_ == []
    weights = (model[2].weight @ model[1].weight).detach()[LABELS].reshape(IMAGES.shape)
    assert_allclose(ours.explain(IMAGES, LABELS), scaled(weights.abs()[:, 0].numpy()), atol=1e-5)
    with pytest.raises(ValueError, match=r"GradCAM.* explains a layer, and fit has found none"):
        ours.explain(IMAGES, method="gradcam")


def test_images_that_the_network_does_not_take():
    with pytest.raises(ValueError, match=r"does not take images of \(3, 16, 16\): .*channels"):
        CAMExplainer(network()).fit(IMAGES.expand(-1, 3, -1, -1))


# Channels


def test_channel_weights():
    model = network()
    ours = explainer(model)

    def alpha(classes, layer="5"):
        return plain_weights(model, IMAGES, of_class(classes), layer)[0].numpy()

    ranked = model(IMAGES).argsort(dim=1, descending=True)
    weights = ours.channel_weights(IMAGES)
    assert weights.dtype == np.float32
    assert_allclose(weights, alpha(ranked[:, 0]), rtol=1e-4, atol=1e-7)
    several = np.stack([alpha(ranked[:, j]) for j in range(2)], 1)
    assert_allclose(ours.channel_weights(IMAGES, TopK(2)), several, rtol=1e-4, atol=1e-7)
    by_layer = explainer(model, target_layer=["2", "5"]).channel_weights(IMAGES, LABELS)
    for of_layer, name in zip(by_layer, ("2", "5"), strict=True):
        assert_allclose(of_layer, alpha(LABELS, name), rtol=1e-4, atol=1e-7)
    maxima = ours.channel_weights(IMAGES, LABELS, method=GradCAM(pooling="max"))
    output, (activations,) = plain_run(model, ["5"], IMAGES)
    (gradient,) = torch.autograd.grad(of_class(LABELS)(output).sum(), activations)
    assert_allclose(maxima, gradient.amax((2, 3)), rtol=1e-4, atol=1e-7)
    for method in ("layercam", "saliency", "uniform"):
        with pytest.raises(ValueError, match="does not weigh channels"):
            ours.channel_weights(IMAGES, method=method)


@pytest.mark.parametrize("target", [None, TopK(2)])
def test_strongest_channels(target):
    ours = explainer()
    weights = ours.channel_weights(IMAGES, target)
    found = ours.strongest_channels(IMAGES, target, k=3)
    ascending = np.sort(weights, axis=-1)
    assert_array_equal(found.positive_weights, ascending[..., :-4:-1])
    assert_array_equal(found.negative_weights, ascending[..., :3])
    for sign in ("positive", "negative"):
        chosen = np.take_along_axis(weights, found[sign], axis=-1)
        assert_array_equal(chosen, found[f"{sign}_weights"])
    for k in (0, 9):
        with pytest.raises(ValueError, match="k, how many channels, must be an int"):
            ours.strongest_channels(IMAGES, k=k)
    with pytest.raises(ValueError, match="one target layer"):
        explainer(target_layer=["2", "5"]).strongest_channels(IMAGES)


# Results that do not fit into memory


@pytest.mark.parametrize("target", [None, TopK(2), np.zeros((N, 2), int)])
@pytest.mark.parametrize("layers", ["auto", ["2", "5"]])
@pytest.mark.parametrize("fusion", ["mean", None])
@pytest.mark.parametrize("method", ["gradcam", Saliency(channels="keep"), Uniform()])
def test_out_and_batches(target, layers, fusion, method, tmp_path):
    model = network()
    ours = explainer(model, method, target_layer=layers, layer_fusion=fusion)
    shape = [N]
    shape += [2] if target is not None else []
    shape += [2] if len(layers) == 2 and fusion is None and method == "gradcam" else []
    shape += [1] if isinstance(method, Saliency) else []
    shape += [16, 16]
    maps = ours.explain(IMAGES, target)
    assert maps.shape == tuple(shape)
    batches = list(ours.iter_explain(IMAGES, target))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert_array_equal(np.concatenate(batches), maps)
    out = np.memmap(tmp_path / "maps", np.float16, "w+", shape=tuple(shape))
    assert ours.explain(IMAGES, target, out=out) is out
    assert_array_equal(out, maps.astype(np.float16))
    with counted(model) as passes:
        for wrong in (
            np.empty((*shape[:-1], 15)),
            np.empty(shape, int),
            np.empty(shape).tolist(),
            np.memmap(tmp_path / "maps", np.float16, "r", shape=tuple(shape)),
        ):
            with pytest.raises(ValueError, match="out"):
                ours.explain(IMAGES, target, out=wrong)
        with pytest.raises(ValueError, match="frame"):
            ours.iter_explain(IMAGES, target, frame="nought")  # at once
        with pytest.raises(ValueError, match="labels"):
            ours.iter_explain(IMAGES, 9)
    assert passes == []


def live_tensors():
    return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]


@pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam", "guidedgradcam"])
def test_nothing_is_kept_between_batches(method):
    alive = []

    class Asking(Dataset):
        """Looks around whenever the first image of a batch is asked for."""

        def __len__(self):
            return 10

        def __getitem__(self, i):
            if i % 2 == 0:
                tensors = live_tensors()
                activations = [tensor for tensor in tensors if tensor.shape[-3:] == (8, 8, 8)]
                graphs = [tensor for tensor in tensors if tensor.grad_fn is not None]
                assert not activations
                assert not graphs
                alive.append(len(tensors))
            return IMAGES[i % N]

    gc.collect()
    gc.freeze()  # what is here already is looked past
    gc.disable()  # or reference cycles would keep tensors for a while
    try:
        ours = explainer(method=method, X=Asking(), batch_size=2)
        for _ in ours.iter_explain(Asking()):
            pass
        assert alive[-3] == alive[-2] == alive[-1]
        ours.predict(Asking())
        if method != "guidedgradcam":
            ours.channel_weights(Asking())
            assert alive[-3:] == [alive[-1] - 2, alive[-1] - 1, alive[-1]]  # the results grow
    finally:
        gc.enable()
        gc.unfreeze()


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


# The model is used, never changed


def state(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [[list(getattr(module, name)) for name in hooks] for module in model.modules()],
        "forwards": ["forward" in vars(module) for module in model.modules()],
        "inplace": [getattr(module, "inplace", None) for module in model.modules()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [id(parameter.grad) for parameter in model.parameters()],
        "values": [value.tolist() for value in model.state_dict().values()],
        "tensors": [id(value) for value in model.parameters()],
        "devices": [value.device for value in model.parameters()],
    }


def mixed_up(module=SmallNet):
    """A network in the middle of somebody's training."""
    model = network(module).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[0].bias.grad = torch.full_like(model[0].bias, 3.0)
    model[4].register_forward_hook(lambda *_: None)
    return model


def unchanged_gradient(model):
    return bool((model[0].bias.grad == 3).all())


@pytest.mark.parametrize("method", available())
def test_every_method_leaves_the_model_alone(method):
    model = mixed_up()
    before = state(model)
    ours = explainer(model, method)
    maps = ours.explain(IMAGES[:2])
    assert maps.shape == (2, 16, 16)
    assert np.isfinite(maps).all()
    next(ours.iter_explain(IMAGES))  # abandoned half-way
    batches = ours.iter_explain(IMAGES)
    next(batches)
    assert state(model) == before  # between batches, too
    batches.close()
    assert state(model) == before
    assert unchanged_gradient(model)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", ["gradcam", "ablationcam", "guidedgradcam", "saliency"])
def test_errors_leave_the_model_alone(method):
    def raising(output):
        raise KeyError("on purpose")

    model = mixed_up(FailingNet)
    before = state(model)
    ours = explainer(model, method, X=IMAGES[:1], target_layer=TargetLayer("5"))
    for attempt in (
        lambda: ours.explain(IMAGES),
        lambda: ours.predict(IMAGES),
        lambda: ours.channel_weights(IMAGES, method="gradcam"),
    ):
        with pytest.raises(RuntimeError, match="on purpose"):
            attempt()
        assert state(model) == before
    explainer(model, method, target_layer="4")  # of a convolution, one image tells all
    with pytest.raises(KeyError):
        ours.explain(IMAGES[:1], raising)
    assert state(model) == before
    assert unchanged_gradient(model)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", ["gradcam", "saliency", "scorecam"])
def test_works_wherever_it_is_called(method):
    ours = explainer(method=method, image_size=16)
    expected = ours.explain(IMAGES)
    several = explainer(network(ImageAndVector), method, **SEVERAL_OPTIONS)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert_array_equal(ours.explain(IMAGES), expected)
            assert_array_equal(ours.explain(IMAGES.clone()), expected)
            assert_array_equal(ours.fit(IMAGES).explain(IMAGES), expected)
            assert ours.explain(ARRAYS).shape == (N, 16, 16)
            several.explain({"image": IMAGES, "vector": VECTORS.numpy()})


@pytest.mark.parametrize("make", [cross_entropy_net, binary_net])
def test_a_net_is_left_as_it_was(make):
    model = make()
    model.module_.train()
    before = state(model.module_)
    ours = explainer(model)
    ours.explain(IMAGES)
    ours.predict(IMAGES)
    assert state(model.module_) == before
    assert {"target_layer_", "target_layers_"}.isdisjoint(vars(model))


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


# Memory format


@pytest.mark.parametrize("method", ["gradcam", "cam", "layercam", "ablationcam", "scorecam"])
def test_large_batches_run_in_channels_last_and_come_out_the_same(method, monkeypatch):
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    # An ablation's weight is the difference of two scores over one of them: near 1 less near 1.
    channels = nn.Sequential(*list(network.children())[:-2])(images).detach()
    size = float(channels.sum(1).max()) if method == "ablationcam" else None
    formats = []
    network.layer1.register_forward_pre_hook(
        lambda module, args: formats.append(
            args[0].is_contiguous(memory_format=torch.channels_last)
        )
    )
    explainer = CAMExplainer(network, method=method, verbose=0).fit(images)
    formats.clear()
    expected = explainer.explain(images, normalize=False)
    assert not formats[0]
    monkeypatch.setattr("sklcam.cam.recorded._PIXELS_TO_REARRANGE", 2 * 64 * 64)
    formats.clear()
    assert_close_maps(explainer.explain(images, normalize=False), expected, size)
    assert formats[0]
    formats.clear()
    explainer.explain(images[:1])
    assert not formats[0]


def test_a_network_that_views_its_tensors_gets_them_as_they_came(monkeypatch):
    torch.manual_seed(0)
    network = Viewing().eval()
    images = torch.randn(2, 3, 8, 8)
    explainer = CAMExplainer(network, target_layer="3", verbose=0).fit(images)
    flattening = copy.deepcopy(network)
    flattening.__class__ = Flattening
    reference = CAMExplainer(flattening, target_layer="3", verbose=0).fit(images)
    for method in ("gradcam", "ablationcam", "scorecam", "occlusion"):
        expected = reference.explain(images, method=method, normalize=False)
        # Ablations and occlusions are differences of scores.
        size = max(expected.max(), float(network(images).abs().max()))
        assert_close_maps(explainer.explain(images, method=method, normalize=False), expected, size)
        with monkeypatch.context() as patch:
            patch.setattr("sklcam.cam.recorded._PIXELS_TO_REARRANGE", 1)
            maps = explainer.explain(images, method=method, normalize=False)
            assert_close_maps(maps, expected, size)
    assert not any(module._forward_hooks for module in network.modules())


def test_running_out_of_memory_is_not_tried_again(monkeypatch):
    monkeypatch.setattr("sklcam.cam.recorded._PIXELS_TO_REARRANGE", 1)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    explainer = CAMExplainer(network, target_layer="0", verbose=0).fit()
    calls = []

    def full(module, args):
        calls.append(module)
        raise torch.OutOfMemoryError

    network.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        explainer.explain(torch.zeros(1, 3, 8, 8))
    assert len(calls) == 1
