"""What an explainer takes as X, and networks of several inputs."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torchvision
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from plain_explanations import (
    ARRAYS,
    IMAGES,
    LABELS,
    SEVERAL,
    SEVERAL_OPTIONS,
    VECTORS,
    N,
    Y,
    explainer,
    net,
    network,
    of_class,
    plain_grad_cam,
    predicted,
    scaled,
)
from rounding import assert_close_maps
from small_networks import ImageAndVector, SmallNet
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms.v2.functional import pil_to_tensor

from sklcam.cam import AblationCAM, Occlusion, ScoreCAM, TopK
from sklcam.images import ImageDataset, map_to_frame, normalize


@contextmanager
def inputs_of(model):
    """What the network is given."""
    given = []
    handle = model.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    yield given
    handle.remove()


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
        (lambda: ARRAYS * 16, "divide by their largest possible"),
        (lambda: "image.png", "X"),
        (lambda: ["none.png"], "do not exist"),
        (lambda: {"image": IMAGES}, r"does not take inputs with the names \['image'\]"),
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
