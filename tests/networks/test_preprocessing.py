"""What is read of a network's source, against the transforms of the sources themselves."""

import math

import numpy as np
import pytest
import timm
import timm.data
import torch
import transformers
from PIL import Image
from torch import nn
from torchvision import models

from sklcam import CAMExplainer
from sklcam.images import ImageDataset, Resizing, map_to_frame
from sklcam.images.frames import resize_image
from sklcam.networks import Preprocessing, build_model, origin_of
from sklcam.networks.processors import read_processor
from sklcam.networks.sources import find_source

# Bytes are scaled along one side and then the other, by PIL as by torch, and rounded after each.
# There a pixel may come out one level higher or lower, as their weights are not of one precision.
ROUNDING = 2.001 / 255


@pytest.fixture(scope="module", params=[(60, 97), (103, 71), (97, 97)], ids=str)
def photograph(request) -> Image.Image:
    """A picture with all that interpolation may get wrong: noise, on a slope."""
    height, width = request.param
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 150, width)[None, :, None] + np.zeros((height, 1, 3))
    return Image.fromarray((slope + rng.integers(0, 105, slope.shape)).astype(np.uint8))


def prepared(said: Preprocessing, X) -> torch.Tensor:
    images = ImageDataset(X, image_size=said.image_size, resize=said.resizing)
    return said.normalize(images[0][0][None])[0]


def assert_made_alike(said: Preprocessing, photograph: Image.Image, expected: torch.Tensor) -> None:
    std = torch.as_tensor(said.std)[:, None, None]
    std = std.flip(0) if said.channel_order == "bgr" else std
    for X in ([photograph], np.asarray(photograph)[None]):
        ours = prepared(said, X)
        assert ours.shape == expected.shape
        assert ((ours - expected) * std).abs().max() <= ROUNDING


# timm


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18.a1_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "tf_efficientnet_b0"),
        *("vit_base_patch16_siglip_224.webli", "vit_base_patch32_clip_224.openai"),
        *("volo_d4_448.sail_in1k", "deepseek_vit_412m.deepseek_v4_flash_vision_exp"),
        *("vit_base_patch16_sapiens2.fb", "inception_v3.tv_in1k", "mnasnet_100.rmsp_in1k"),
    ],
)
def test_images_are_those_of_timm(name, photograph):
    if not timm.is_model(name.partition(".")[0]):
        pytest.skip("an older timm does not have it")
    config = timm.data.resolve_data_config(
        {}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()
    )
    transform = timm.data.create_transform(**config, is_training=False)
    said = find_source(f"timm/{name}").origin(None).preprocessing
    assert said.mean == config["mean"] and said.std == config["std"]
    assert said.source == f"timm's configuration of {name}"
    assert_made_alike(said, photograph, transform(photograph))


def test_all_configurations_of_timm():
    for name in timm.list_pretrained():
        cfg = timm.get_pretrained_cfg(name).to_dict()
        said = find_source(f"timm/{name}").origin(None).preprocessing
        height, width = cfg["input_size"][1:]
        around = math.floor(height / cfg["crop_pct"]), math.floor(width / cfg["crop_pct"])
        mode = {"squash": "stretch", "border": "pad"}.get(cfg["crop_mode"], "center_crop")
        assert said.image_size == (height, width)
        assert said.resizing.place(around, (height, width))[0] == around
        assert (said.resizing.mode, said.resizing.interpolation) == (mode, cfg["interpolation"])
        assert (said.mean, said.std) == (tuple(cfg["mean"]), tuple(cfg["std"]))


def test_an_instance_of_timm_says_it_too():
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=12)
    said = origin_of(network).preprocessing
    assert (said.image_size, said.mean) == ((32, 32), (0.5, 0.5, 0.5))
    assert said.resizing == Resizing("center_crop", 0.9, "bicubic")


# torchvision


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        *(("resnet18", "IMAGENET1K_V1"), ("resnet50", "DEFAULT"), ("swin_t", "DEFAULT")),
        *(("efficientnet_b0", "DEFAULT"), ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")),
    ],
)
def test_images_are_those_of_torchvision(name, weights, photograph):
    origin = find_source(f"torchvision/{name}").origin(weights)
    member = models.get_model_weights(name)[weights]
    assert_made_alike(origin.preprocessing, photograph, member.transforms()(photograph))
    assert origin.preprocessing.source == f"torchvision's transforms of {member}"
    assert list(origin.class_names) == member.meta["categories"]


def test_without_weights_torchvision_says_nothing():
    said = find_source("resnet18").origin(None).preprocessing
    assert said == Preprocessing() and not find_source("resnet18").origin(None).is_known
    assert "by default" in said.source and "mean=, std=" in said.source


# transformers


@pytest.mark.parametrize(
    "processor",
    [
        transformers.ViTImageProcessor(size={"height": 48, "width": 48}),
        transformers.ViTImageProcessor(resample=3, image_mean=[0.1, 0.2, 0.3], do_rescale=True),
        transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.8),
        transformers.ConvNextImageProcessor(size={"shortest_edge": 384}),
        transformers.DeiTImageProcessor(),
        transformers.MobileViTImageProcessor(),
        transformers.LevitImageProcessor(),
        transformers.EfficientNetImageProcessor(include_top=True),
        transformers.ViTImageProcessor(do_normalize=False),
        transformers.ViTImageProcessor(do_normalize=False, do_rescale=False),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_images_are_those_of_image_processors(processor, photograph):
    said = read_processor(processor, "it")
    assert said.is_settled
    made = processor(images=[photograph], return_tensors="pt")["pixel_values"][0]
    assert_made_alike(said, photograph, made.float())


def test_a_processor_that_does_more_is_not_followed():
    """Images of any size are not of one; what it makes can be passed, and what is said is taken."""
    said = read_processor(transformers.ViTImageProcessor(do_resize=False), "it")
    assert not said.is_settled
    images = torch.zeros(1, 3, *said.image_size)
    with pytest.raises(ValueError, match=r"it does more than .* or pass the processor's own"):
        said.normalize(images)
    said.with_given(image_size=8, resize="stretch", mean=0, std=1).normalize(images)
    with pytest.raises(ValueError, match="all four"):
        said.with_given(image_size=8, mean=0, std=1).normalize(images)


# Frames


@pytest.mark.parametrize(
    "how",
    [
        *(Resizing("stretch", 0.875), Resizing("center_crop", 0.8, "bicubic")),
        *(Resizing("center_crop", 0.875, rounds_down=True), Resizing("pad", 1.0)),
        *(Resizing("center_crop", 1.15), Resizing("pad", 1.25, "lanczos")),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(120, 200), (201, 130)])
def test_maps_come_back_to_where_they_were(how, size):
    """A slope is its own interpolation: where the network sees the image, it comes back."""
    rows, columns = torch.linspace(0.2, 0.5, size[0])[:, None], torch.linspace(0, 0.5, size[1])
    image = (rows + columns)[None]
    back = map_to_frame(resize_image(image, (96, 80), how)[0], size, resize=how)
    (height, width), top, left = how.place(size, (96, 80))
    scale = np.array([size[0] / height, size[1] / width])
    first = np.maximum(np.ceil(np.array([top, left]) * scale + 3), 3).astype(int)
    last = np.minimum((np.array([top + 96, left + 80]) * scale - 3), np.array(size) - 3).astype(int)
    inside = (slice(first[0], last[0]), slice(first[1], last[1]))
    assert (last - first > 40).all()
    torch.testing.assert_close(back[inside], image[0][inside], atol=4e-3, rtol=0)
    outside = torch.ones(size, dtype=torch.bool)
    outside[max(0, first[0] - 6) : last[0] + 6, max(0, first[1] - 6) : last[1] + 6] = False
    assert not back[outside].any()


# Explainers


def tiny_vit() -> nn.Module:
    options = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 12, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", num_classes=4, **options)


def test_parameters_win_one_by_one(photograph):
    network = tiny_vit()
    explainer = CAMExplainer(network, mean=0.25, verbose=0).fit([photograph])
    said = explainer.preprocessing_
    assert (said.image_size, said.mean, said.std) == ((32, 32), 0.25, (0.5, 0.5, 0.5))
    assert said.source == "timm's configuration of vit_tiny_patch16_224; mean as given"
    config = timm.data.resolve_model_data_config(network)
    config.update(input_size=(3, 32, 32), mean=(0.25,) * 3)
    expected = timm.data.create_transform(**config, is_training=False)(photograph)
    (made,) = explainer.iter_inputs([photograph])
    assert (made[0] - expected).abs().max() <= ROUNDING / 0.5
    stretched = CAMExplainer(network, resize="stretch", verbose=0).fit([photograph])
    assert stretched.preprocessing_.resizing == Resizing("stretch", 1.0, "bicubic")
    [map_] = explainer.explain([photograph], frame="image")
    assert map_.shape == (photograph.height, photograph.width)


def test_a_network_that_knows_nothing_says_so():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    explainer = CAMExplainer(network, image_size=16, verbose=0).fit(np.zeros((1, 20, 20)))
    said = explainer.preprocessing_
    assert said.source.startswith("ImageNet's mean and standard deviation, by default")
    assert said.mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)


def test_a_source_of_three_channels_and_images_of_one():
    network = build_model("timm/resnet18", in_channels=1, n_classes=3, image_size=(96, 96))
    explainer = CAMExplainer(network, verbose=0).fit(np.zeros((1, 40, 40)))
    assert explainer.preprocessing_.mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)


def test_a_network_in_data_parallel_is_prepared_for_as_it_is_alone():
    timm = pytest.importorskip("timm")
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=48, num_heads=3, num_classes=3
    ).eval()
    alone, parallel = (
        CAMExplainer(each, image_size=64, verbose=0).fit()
        for each in (network, torch.nn.DataParallel(network))
    )
    assert parallel.preprocessing_.mean == alone.preprocessing_.mean == (0.5, 0.5, 0.5)
