"""Prompts as proxies: against autograd by hand, on tiny networks of images and texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import sklcam
from sklcam import EmbeddingCAMExplainer
from sklcam.embeddings import Text
from sklcam.images.frames import resize_image
from sklcam.networks import TargetLayer, origin_of

PROMPTS = ["a cat", "a dog", "the sea"]
TOKENS = {"a cat": [48, 3, 49, 0], "a dog": [48, 7, 8, 49], "the sea": [48, 20, 49, 0]}


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Tokenizer:
    """As those of transformers are: a mapping of tensors."""

    def __init__(self):
        self.calls: list[dict] = []

    def __call__(self, prompts, **options):
        self.calls.append(options)
        ids = torch.tensor([TOKENS[prompt] for prompt in prompts])
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def open_clip_tokenizer(prompts):
    ids = torch.tensor([TOKENS[prompt] for prompt in prompts])
    return F.pad(ids, (0, 4))


def of_transformers() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    each = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    text = {"vocab_size": 50, "max_position_embeddings": 8, "num_hidden_layers": 1, **each}
    tokens = {"eos_token_id": 49, "bos_token_id": 48, "pad_token_id": 0}
    vision = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 2, **each}
    config = CLIPConfig(text_config={**text, **tokens}, vision_config=vision, projection_dim=12)
    return CLIPModel(config).eval()


def of_open_clip() -> nn.Module:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    return open_clip.CLIP(
        embed_dim=12,
        vision_cfg={"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16},
        text_cfg={"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
    ).eval()


def by_hand(encode, layer: nn.Module, X: Tensor, prompts: Tensor, to_grid) -> Tensor:
    """Grad-CAM of the inner product of an image's embedding and a prompt's, of length 1."""
    kept = []
    handle = layer.register_forward_hook(lambda *args: kept.append(args[2]))
    embeddings = encode(X)
    handle.remove()
    score = (embeddings * prompts / prompts.norm(dim=1, keepdim=True)).sum()
    (gradient,) = torch.autograd.grad(score, kept[0])
    activations, gradient = to_grid(kept[0].detach()), to_grid(gradient)
    maps = (gradient.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True).relu()
    return F.interpolate(maps, X.shape[-2:], mode="bilinear")[:, 0]


def pooled(output):
    return getattr(output, "pooler_output", output)


def tokens_to_grid(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))


def test_a_clip_of_transformers():
    network, X, tokenizer = of_transformers(), images(), Tokenizer()
    layer = "vision_model.encoder.layers.1.layer_norm1"
    explainer = EmbeddingCAMExplainer(network, Text(PROMPTS, tokenizer), verbose=0).fit(X)
    assert [each.name for each in explainer.target_layers_] == [layer]
    assert explainer.classes_.tolist() == PROMPTS
    with torch.no_grad():
        texts = pooled(network.get_text_features(**tokenizer(PROMPTS)))
        found = pooled(network.get_image_features(pixel_values=X))
    np.testing.assert_allclose(explainer.proxies_, F.normalize(texts), atol=1e-6)
    cosines = F.normalize(found) @ F.normalize(texts).T
    assert explainer.predict(X).tolist() == [PROMPTS[i] for i in cosines.argmax(1)]
    np.testing.assert_allclose(explainer.predict_proba(X), cosines.softmax(1), atol=1e-6)

    def encode(pixels):
        return pooled(network.get_image_features(pixel_values=pixels))

    part = network.get_submodule(layer)
    expected = by_hand(encode, part, X, texts[[1]], tokens_to_grid)
    maps = explainer.explain(X, "a dog", normalize=False)
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-8)
    # Prompts that it was not fitted with, one for each image or one for all.
    n_before = len(tokenizer.calls)
    other = explainer.explain(X, Text(["the sea", "a dog", "a cat"], tokenizer), normalize=False)
    expected = by_hand(encode, part, X, texts[[2, 1, 0]], tokens_to_grid)
    np.testing.assert_allclose(other, expected, rtol=1e-4, atol=1e-8)
    assert len(tokenizer.calls) == n_before + 1  # once for all batches
    one = explainer.explain(X, Text("a dog", tokenizer))
    np.testing.assert_allclose(one, explainer.explain(X, "a dog"), atol=1e-5)
    # A callable is given the embeddings: the cosine, for one.
    cosine = explainer.explain(X, lambda y: F.cosine_similarity(y, texts[[1]]))
    assert cosine.shape == (3, 32, 32)
    assert "forward" not in vars(network)


def test_a_clip_of_open_clip():
    network, X = of_open_clip(), images()
    explainer = EmbeddingCAMExplainer(
        network, Text(PROMPTS, open_clip_tokenizer), target_layer="visual.layer3", verbose=0
    ).fit(X)
    with torch.no_grad():
        texts = network.encode_text(open_clip_tokenizer(PROMPTS))
    expected = by_hand(
        network.encode_image, network.visual.layer3, X, texts[[2]], lambda grid: grid
    )
    maps = explainer.explain(X, "the sea", normalize=False)
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-8)


def test_how_open_clip_prepares_images():
    network = of_open_clip()
    assert not origin_of(network).is_known
    network.visual.preprocess_cfg = {
        **{"size": (32, 48), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
        **{"interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0},
    }
    found = origin_of(network).preprocessing
    assert (found.image_size, found.mean, found.std) == ((32, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (found.resizing.mode, found.resizing.interpolation) == ("center_crop", "bicubic")
    network.visual.preprocess_cfg["resize_mode"] = "other"
    assert not origin_of(network).preprocessing.is_settled


@pytest.mark.parametrize("width", [35, 37, 39])
def test_crops_of_open_clip_are_its_own_to_the_pixel(width):
    """An excess of 3 pixels has its middle between two, as one of 5 or 7 has."""
    open_clip = pytest.importorskip("open_clip")
    network = of_open_clip()
    network.visual.preprocess_cfg = {"size": (32, 32), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    pixels = torch.randint(256, (3, 32, width), generator=torch.Generator().manual_seed(0))
    image = pixels.to(torch.uint8)
    own = open_clip.image_transform((32, 32), is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    expected = own(Image.fromarray(image.permute(1, 2, 0).numpy()))
    resizing = origin_of(network).preprocessing.resizing
    torch.testing.assert_close(resize_image(image, (32, 32), resizing) / 255, expected)


def test_embeddings_of_prompts_need_no_tokenizer():
    network, X = of_transformers(), images()
    with torch.no_grad():
        texts = pooled(network.get_text_features(**Tokenizer()(PROMPTS)))
    with_tokenizer = EmbeddingCAMExplainer(network, Text(PROMPTS, Tokenizer()), verbose=0).fit(X)
    with_embeddings = EmbeddingCAMExplainer(
        network, Text(PROMPTS, embeddings=texts), classes=[7, 8, 9], verbose=0
    ).fit(X)
    np.testing.assert_array_equal(with_embeddings.explain(X, 8), with_tokenizer.explain(X, "a dog"))


def test_siglip_is_padded_as_it_was_trained():
    network, tokenizer = of_transformers(), Tokenizer()
    EmbeddingCAMExplainer(network, Text(PROMPTS, tokenizer), verbose=0).fit(images())
    network.config.model_type = "siglip"
    EmbeddingCAMExplainer(network, Text(PROMPTS, tokenizer), verbose=0).fit(images())
    assert [each["padding"] for each in tokenizer.calls] == [True, "max_length"]


def test_an_explainer_of_prompts_is_saved_and_loaded(tmp_path):
    network, X, tokenizer = of_transformers(), images(), Tokenizer()
    explainer = EmbeddingCAMExplainer(network, Text(PROMPTS, tokenizer), verbose=0).fit(X)
    sklcam.save(explainer, tmp_path / "prompts")
    loaded = sklcam.load(
        tmp_path / "prompts", objects={"CLIPModel": of_transformers(), "Tokenizer": tokenizer}
    )
    np.testing.assert_array_equal(loaded.explain(X, "a cat"), explainer.explain(X, "a cat"))
    np.testing.assert_array_equal(loaded.predict(X), explainer.predict(X))


def test_a_segmentation_layer_is_none_of_theirs():
    layer = TargetLayer("vision_model.encoder.layers.0", "tokens", grid=(4, 4), n_prefix=1)
    explainer = EmbeddingCAMExplainer(
        of_transformers(), Text(PROMPTS, Tokenizer()), target_layer=layer, verbose=0
    )
    assert explainer.fit(images()).explain(images(), "a cat", method="layercam").any()


def test_what_text_refuses():
    X = images()
    with pytest.raises(ValueError, match="neither get_image_features and get_text_features"):
        EmbeddingCAMExplainer(nn.Flatten(), Text(PROMPTS), verbose=0).fit(X)
    with pytest.raises(ValueError, match="needs the network's tokenizer, or embeddings="):
        EmbeddingCAMExplainer(of_transformers(), Text(PROMPTS), verbose=0).fit(X)
    explainer = EmbeddingCAMExplainer(of_transformers(), Text(PROMPTS, Tokenizer()), verbose=0).fit(
        X
    )
    with pytest.raises(ValueError, match="target has 2 prompts for 3 images"):
        explainer.explain(X, Text(PROMPTS[:2], Tokenizer()))
