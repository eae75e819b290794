"""Networks of timm and of Hugging Face, trained on their maps."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from numpy.testing import assert_allclose
from small_networks import Gradients, SmallNet
from torch import nn
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from sklcam import ConsistentCAMClassifier
from sklcam.networks import TargetLayer

X = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
X[:3, :, :32] //= 2
Y = np.arange(6) % 3


def timm_vit(name="vit_tiny_patch16_224", **options):
    options = {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 3, **options}
    return timm.create_model(name, num_classes=3, **options)


def hf_vit(**options):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "image_size": 64, "patch_size": 16}
    return ViTForImageClassification(ViTConfig(num_labels=3, **sizes, **options))


def hf_swin():
    sizes = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "window_size": 4}
    config = SwinConfig(num_labels=3, depths=[1, 2], num_heads=[2, 2], **sizes)
    return SwinForImageClassification(config)


NETWORKS = {
    "timm_vit": timm_vit,
    "deit": partial(timm_vit, "deit_tiny_patch16_224"),
    "deit_distilled": partial(timm_vit, "deit_tiny_distilled_patch16_224"),
    "swin": partial(
        timm.create_model,
        "swin_tiny_patch4_window7_224",
        num_classes=3,
        img_size=64,
        window_size=4,
        depths=(1, 2),
        embed_dim=24,
        num_heads=(2, 2),
    ),
    "convnextv2": partial(
        timm.create_model, "convnextv2_atto", num_classes=3, depths=(1,) * 4, dims=(8, 16, 24, 32)
    ),
    "efficientnet": partial(timm.create_model, "test_efficientnet", num_classes=3),
    "mobilevit": partial(timm.create_model, "mobilevit_xxs", num_classes=3),
    "hf_vit": hf_vit,
    "hf_swin": hf_swin,
}
# Those whose usual layer, a norm at the start of the last block, lies beside a residual branch, and
# the layer that would do for low memory.
INSTEAD = {
    "timm_vit": "blocks.1",
    "deit": "blocks.1",
    "deit_distilled": "blocks.1",
    "hf_vit": "vit.layers.1",
}


@pytest.fixture(scope="module")
def networks():
    """The networks, made once; those that are trained are copies."""
    found = {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        found[name] = make()
    return found


def trained(module, **options):
    defaults = {
        "image_size": 64,
        "mean": 0.5,
        "std": 0.25,
        "alpha": 0.7,
        "beta": 1e-3,
        "augment": None,
        "max_epochs": 1,
        "batch_size": 6,
        "lr": 0.01,
        "verbose": 0,
        "random_state": 0,
        "device": "cpu",
        "callbacks": [("gradients", Gradients())],
    }
    clf = ConsistentCAMClassifier(module, **{**defaults, **options}).fit(X, Y)
    return clf, torch.stack(dict(clf.callbacks_)["gradients"].seen)


def difference(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_trained_and_explained(name, networks):
    clf, gradients = trained(networks[name], max_epochs=2)
    for key in ("train_loss", "train_ce", "train_inconsistency", "train_norm"):
        assert np.isfinite(clf.history[:, key]).all()
    assert 0 < clf.history[-1, "train_inconsistency"] < 2
    assert torch.isfinite(gradients).all()
    maps = clf.explain(X[:2])
    assert maps.shape == (2, 64, 64)
    assert_allclose([maps.min(), maps.max()], [0, 1])


def test_builders_are_told_the_number_of_classes():
    builder = partial(
        timm.create_model, "vit_tiny_patch16_224", img_size=64, depth=3, embed_dim=48, num_heads=3
    )
    clf, _ = trained(builder)
    assert clf.module_.head.out_features == 3
    assert clf.predict_proba(X).shape == (6, 3)


# Gradients


class InDoublePrecision(nn.Module):
    """A network in float64, all of whose parameters count: none begins at zero."""

    def __init__(self, network):
        super().__init__()
        self.network = copy.deepcopy(network).double()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))

    def forward(self, images):
        return self.network(images.double())


# Of each network some parameters before the target layer, its own, and some behind it.
PARAMETERS = {
    "timm_vit": [
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.2.norm1.weight",
        "blocks.2.attn.qkv.weight",
        "blocks.2.mlp.fc2.bias",
        "head.weight",
    ],
    "hf_vit": [
        "vit.embeddings.cls_token",
        "vit.layers.1.attention.k_proj.weight",
        "vit.layers.2.layernorm_before.bias",
        "vit.layers.2.attention.q_proj.weight",
        "classifier.weight",
    ],
    "hf_swin": [
        "swin.embeddings.patch_embeddings.projection.weight",
        "swin.encoder.layers.1.blocks.0.attention.o_proj.weight",
        "swin.layernorm.weight",
        "classifier.bias",
    ],
}
USUAL = {
    "timm_vit": TargetLayer("network.blocks.2.norm1", layout="tokens", grid=(4, 4), n_prefix=1),
    "hf_vit": TargetLayer(
        "network.vit.layers.2.layernorm_before", layout="tokens", grid=(4, 4), n_prefix=1
    ),
    "hf_swin": TargetLayer("network.swin.layernorm", layout="tokens", grid=(8, 8)),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_gradients_are_finite_differences_of_the_loss(name, networks):
    network = InDoublePrecision(networks[name])
    options = {"target_layer": USUAL[name], "lr": 0.0, "optimizer__weight_decay": 0}

    def loss(network):
        return trained(network, **options)[0].history[0, "batches", 0, "train_loss"]

    _, gradients = trained(network, **options)
    sizes = [parameter.numel() for parameter in network.parameters()]
    names = [name for name, _ in network.named_parameters()]
    by_name = dict(zip(names, gradients[0].split(sizes), strict=True))
    for parameter in PARAMETERS[name]:
        gradient = by_name[f"network.{parameter}"]
        entry, step = int(gradient.abs().argmax()), 1e-6
        losses = []
        for sign in (1, -1):
            other = copy.deepcopy(network)
            other.get_parameter(f"network.{parameter}").data.view(-1)[entry] += sign * step
            losses.append(loss(other))
        expected = (losses[0] - losses[1]) / (2 * step)
        assert_allclose(float(gradient[entry]), expected, rtol=1e-5)


# Low memory, half precision


@pytest.mark.parametrize("name", NETWORKS)
def test_low_memory_takes_the_same_step(name, networks):
    options = {"target_layer": INSTEAD[name]} if name in INSTEAD else {}
    low, normal = (
        trained(networks[name], memory=memory, **options)[1] for memory in ("low", "normal")
    )
    assert difference(low, normal) < 1e-5


@pytest.mark.parametrize("name", INSTEAD)
def test_low_memory_names_the_layer_that_would_do(name, networks):
    with pytest.raises(ValueError, match=rf"is bypassed .* target_layer='{INSTEAD[name]}', which"):
        trained(networks[name], memory="low")


@pytest.mark.parametrize("memory", ["normal", "low"])
@pytest.mark.parametrize("name", ["timm_vit", "deit_distilled", "convnextv2", "hf_vit", "hf_swin"])
def test_half_precision_takes_about_the_same_step(name, memory, networks):
    options = {"target_layer": INSTEAD[name]} if name in INSTEAD else {}
    _, half = trained(networks[name], precision="bf16", memory=memory, **options)
    _, full = trained(networks[name], **options)
    assert difference(half, full) < 0.1


# Checkpoints, compiled blocks, kernels


def checkpointing(network):
    network = copy.deepcopy(network)
    # The last is what transformers 6 calls it.
    names = ["set_grad_checkpointing", "gradient_checkpointing_enable"]
    names += ["activation_checkpointing_enable"]
    getattr(network, next(name for name in names if hasattr(network, name)))()
    return network


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
@pytest.mark.parametrize("memory", ["normal", "low"])
@pytest.mark.parametrize("name", ["timm_vit", "swin", "efficientnet", "hf_vit", "hf_swin"])
def test_checkpoints_change_nothing(name, memory, networks):
    options = {"memory": memory, "max_epochs": 2}
    options |= {"target_layer": INSTEAD[name]} if name in INSTEAD else {}
    plain, expected = trained(networks[name], **options)
    clf, gradients = trained(checkpointing(networks[name]), **options)
    assert difference(gradients, expected) < 1e-4
    # Running statistics too, which what is run again must not count twice.
    expected = plain.module_.state_dict()
    for key, value in clf.module_.state_dict().items():
        assert_allclose(value, expected[key], rtol=1e-3, atol=1e-5)


def test_compiled_blocks_train_alike(networks):
    _, plain = trained(networks["timm_vit"])
    _, compiled = trained(networks["timm_vit"], compile=True, compile__backend="aot_eager")
    assert difference(compiled, plain) < 1e-5


def test_attention_by_hand_and_by_kernel_train_alike(networks):
    gradients = []
    for kernels in ("eager", "sdpa"):
        network = copy.deepcopy(networks["hf_vit"])
        network.set_attn_implementation(kernels)
        gradients.append(trained(network)[1])
    assert difference(*gradients) < 1e-5


def test_kernels_without_a_second_derivative_are_refused():
    network = nn.Sequential(SmallNet(in_channels=3))
    network[0].config = SimpleNamespace(_attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match=r"attn_implementation='flash_attention_2' .*\"sdpa\""):
        trained(network)
    trained(network, alpha=0, beta=0)


def test_heads_that_would_not_be_trained_are_refused(networks):
    network = copy.deepcopy(networks["deit_distilled"])
    network.set_distilled_training(True)
    with pytest.raises(ValueError, match=r"only the first .*set_distilled_training\(False\)"):
        trained(network, alpha=0, beta=0)
