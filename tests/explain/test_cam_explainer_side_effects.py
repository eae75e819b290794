"""An explainer keeps nothing, and leaves the model as it was."""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest
import torch
import torchvision
from numpy.testing import assert_array_equal
from plain_explanations import (
    ARRAYS,
    IMAGES,
    SEVERAL_OPTIONS,
    VECTORS,
    N,
    binary_net,
    counted,
    cross_entropy_net,
    explainer,
    network,
)
from rounding import assert_close_maps
from small_networks import (
    OF_ATTENTION,
    FailingNet,
    Flattening,
    ImageAndVector,
    SmallNet,
    Viewing,
)
from torch import nn
from torch.utils.data import Dataset

from sklcam import CAMExplainer
from sklcam.cam import Saliency, TopK, Uniform, available
from sklcam.networks import TargetLayer

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
    # Signed maps are of any size, and float16 holds those in [0, 1].
    dtype = np.float64 if isinstance(method, Saliency) else np.float16
    out = np.memmap(tmp_path / "maps", dtype, "w+", shape=tuple(shape))
    assert ours.explain(IMAGES, target, out=out) is out
    assert_array_equal(out, maps.astype(dtype))
    with counted(model) as passes:
        for wrong in (
            np.empty((*shape[:-1], 15)),
            np.empty(shape, int),
            np.empty(shape).tolist(),
            np.memmap(tmp_path / "maps", dtype, "r", shape=tuple(shape)),
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


@pytest.mark.parametrize("method", sorted({*available()} - OF_ATTENTION))
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
    monkeypatch.setattr("sklcam.networks.inference._PIXELS_TO_REARRANGE", 2 * 64 * 64)
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
            patch.setattr("sklcam.networks.inference._PIXELS_TO_REARRANGE", 1)
            maps = explainer.explain(images, method=method, normalize=False)
            assert_close_maps(maps, expected, size)
    assert not any(module._forward_hooks for module in network.modules())


def test_running_out_of_memory_is_not_tried_again(monkeypatch):
    monkeypatch.setattr("sklcam.networks.inference._PIXELS_TO_REARRANGE", 1)
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
