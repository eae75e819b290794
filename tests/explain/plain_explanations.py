"""Networks, nets and images to explain, and Grad-CAM of them in plain torch."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from small_networks import SmallNet, digits
from torch import nn

from sklcam import CAMExplainer

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


def net(module, images, y, kind=NeuralNetClassifier, **options):
    torch.manual_seed(2)
    return kind(
        module, max_epochs=1, lr=0.1, train_split=None, batch_size=4, verbose=0, **options
    ).fit(images, y)


def cross_entropy_net():
    return net(SmallNet, IMAGES, Y, criterion=nn.CrossEntropyLoss)


def binary_net(module=None, **options):
    y = (Y > 0).astype(np.float32)
    return net(module or SmallNet(1), IMAGES, y, NeuralNetBinaryClassifier, **options)


VECTORS = torch.randn(N, 2, generator=torch.Generator().manual_seed(3))
SEVERAL = {"vector": VECTORS, "image": IMAGES}
SEVERAL_OPTIONS = {"X": SEVERAL, "image_input": "image", "target_layer": "conv"}
