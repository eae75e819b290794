"""Networks that users bring, of timm and transformers: the layer that is found, and its maps.

What the layers must be comes from the libraries themselves: their prefix tokens and grids. Maps are
compared with Grad-CAM as it is written in its paper.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sklcam import CAMExplainer
from sklcam.networks import TargetLayer

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

SIDE = 64
IMAGES = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))

small_vit = partial(timm.create_model, img_size=SIDE, embed_dim=32, depth=3, num_heads=2)
TIMM = {
    "vit": (partial(small_vit, "vit_tiny_patch16_224"), "blocks.2.norm1"),
    "deit, distilled": (partial(small_vit, "deit_tiny_distilled_patch16_224"), "blocks.2.norm1"),
    "dinov2, registers": (
        partial(small_vit, "vit_small_patch14_reg4_dinov2", patch_size=16),
        "blocks.2.norm1",
    ),
    "vit, pooled": (partial(small_vit, "vit_small_patch16_224", global_pool="avg"), "blocks"),
    "beit": (partial(small_vit, "beit_base_patch16_224"), "blocks.2"),
    "cait": (partial(small_vit, "cait_xxs24_224"), "blocks"),
    "mixer": (partial(timm.create_model, "mixer_s16_224", img_size=SIDE), "norm"),
    "swin": (
        partial(
            timm.create_model,
            "swin_tiny_patch4_window7_224",
            img_size=SIDE,
            window_size=4,
            embed_dim=16,
            depths=(1, 1, 2),
            num_heads=(1, 2, 2),
        ),
        "norm",
    ),
    "convnext v2": (
        partial(timm.create_model, "convnextv2_atto", dims=(8, 8, 16, 16), depths=(1, 1, 1, 1)),
        "stages",
    ),
    "mambaout": (partial(timm.create_model, "mambaout_femto"), "stages"),
    "mobilevit": (partial(timm.create_model, "mobilevit_xxs"), "final_conv"),
    "resnet": (partial(timm.create_model, "resnet10t"), "layer4"),
}  # fmt: skip

small = {"image_size": SIDE, "hidden_size": 32, "num_attention_heads": 2, "num_labels": 4}
small_hf = {**small, "num_hidden_layers": 3, "intermediate_size": 64, "patch_size": 16}
stages = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_labels": 4}
HUGGING_FACE = {
    "ViT": (small_hf, 1, "vit.layers.2.layernorm_before"),
    "DeiT": (small_hf, 2, "deit.layers.2.layernorm_before"),
    "Beit": (small_hf, 1, "beit.layers.2"),
    "Dinov2WithRegisters": ({**small_hf, "num_register_tokens": 3}, 4, "layernorm"),
    "Swin": (
        {
            **{"image_size": SIDE, "patch_size": 4, "embed_dim": 16, "window_size": 4},
            **{"depths": [1, 2], "num_heads": [2, 2], "num_labels": 4},
        },
        0,
        "swin.layernorm",
    ),
    "ResNet": ({"embedding_size": 8, **stages}, None, "stages.3"),
    "ConvNextV2": (stages, None, "stages.3"),
}


def timm_network(kind):
    torch.manual_seed(0)
    make, _ = TIMM[kind]
    return make(num_classes=4).eval()


def hugging_face_network(kind):
    torch.manual_seed(0)
    options, *_ = HUGGING_FACE[kind]
    config = getattr(transformers, f"{kind}Config")(**options)
    return getattr(transformers, f"{kind}ForImageClassification")(config).eval()


def output_of(network, images):
    output = network(images)
    return output if isinstance(output, torch.Tensor) else output.logits


def grad_cam(network, name, grid_of):
    """Grad-CAM by hand, eq. 1 and 2, with activations brought to (n, K, u, v) by ``grid_of``."""
    kept = []
    layer = network.get_submodule(name)
    hook = layer.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = output_of(network, IMAGES)
    hook.remove()
    (gradients,) = torch.autograd.grad(logits.amax(1).sum(), kept[-1])
    activations, gradients = grid_of(kept[-1].detach()), grid_of(gradients)
    weights = gradients.mean((2, 3), keepdim=True)
    maps = (weights * activations).sum(1, keepdim=True).relu()
    maps = nn.functional.interpolate(maps, (SIDE, SIDE), mode="bilinear")[:, 0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low).clamp(min=1e-12)).numpy()


def compare(network, explainer, grid_of):
    (layer,) = explainer.target_layers_
    maps = explainer.explain(IMAGES)
    assert maps.any(axis=(1, 2)).any()
    np.testing.assert_allclose(maps, grad_cam(network, layer.name, grid_of), atol=2e-4)


def of_tokens(n_prefix, grid):
    return lambda output: output[:, n_prefix:].transpose(1, 2).unflatten(2, grid)


@pytest.mark.filterwarnings("ignore::sklcam.explain.ExplanationWarning")
@pytest.mark.parametrize("kind", TIMM)
def test_timm(kind):
    network = timm_network(kind)
    # Heads that start at zero would make all maps blank.
    heads = network.get_classifier()
    for head in heads if isinstance(heads, tuple) else [heads]:
        nn.init.normal_(head.weight)
    explainer = CAMExplainer(network, verbose=0).fit(IMAGES[:1])
    (layer,) = explainer.target_layers_
    assert layer.name == TIMM[kind][1]
    patches = getattr(network, "stem" if kind == "mixer" else "patch_embed", None)
    if patches is not None and kind != "swin":
        grid = tuple(patches.grid_size)
        n_prefix = 0 if kind == "cait" else getattr(network, "num_prefix_tokens", 0)
        assert layer == TargetLayer(layer.name, "tokens", grid, n_prefix)
        compare(network, explainer, of_tokens(n_prefix, grid))
    elif kind in ("swin", "mambaout"):
        assert layer == TargetLayer(layer.name, "nhwc")
        assert network.feature_info[-1]["num_chs"] == network.num_features
        compare(network, explainer, lambda output: output.permute(0, 3, 1, 2))
    else:
        assert layer == TargetLayer(layer.name)
        compare(network, explainer, lambda output: output)


@pytest.mark.filterwarnings("ignore::sklcam.explain.ExplanationWarning")
@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_hugging_face(kind):
    network = hugging_face_network(kind)
    _, n_prefix, name = HUGGING_FACE[kind]
    explainer = CAMExplainer(network, verbose=0).fit({"pixel_values": IMAGES[:1]})
    (layer,) = explainer.target_layers_
    assert layer.name.endswith(name)
    if n_prefix is None:
        assert layer == TargetLayer(layer.name)
        compare(network, explainer, lambda output: output)
        return
    stride = network.config.patch_size * (2 if kind == "Swin" else 1)
    grid = (SIDE // stride, SIDE // stride)
    assert layer == TargetLayer(layer.name, "tokens", grid, n_prefix)
    compare(network, explainer, of_tokens(n_prefix, grid))
    explained = explainer.explain({"pixel_values": IMAGES})
    np.testing.assert_array_equal(explained, explainer.explain(IMAGES))


def test_two_branches_are_refused_with_candidates():
    torch.manual_seed(0)
    network = timm.create_model("crossvit_9_240", num_classes=4).eval()
    with pytest.raises(ValueError, match=r"cannot be decided. Candidates, last first: '\S+', of"):
        CAMExplainer(network, verbose=0).fit(torch.zeros(1, 3, 240, 240))
