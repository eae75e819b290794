"""The networks that ``networks.py`` judges: timm's by name, transformers' by configuration.

They are small variants, at small sizes if they take those. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import timm
from torch import nn


@dataclass(frozen=True)
class Case:
    """A network to judge.

    Parameters
    ----------
    source, family, name : str
    size : tuple of int
        Height and width of its images.
    build : callable
        Takes the number of classes and returns the network.
    """

    source: str
    family: str
    name: str
    size: tuple[int, int]
    build: Callable[[int], nn.Module]

    def reduction(self, network: nn.Module) -> int | None:
        """Return the stride of the last of several stages, if the network declares it."""
        info = getattr(network, "feature_info", None)
        strides = [each["reduction"] for each in info or [] if "reduction" in each]
        return strides[-1] if len(set(strides)) > 1 else None


# timm's: "name@size" in each family.
TIMM = {
    "ViT": "vit_tiny_patch16_224@96 vit_medium_patch16_gap_256@96 vit_base_patch32_clip_224@128 "
    "vit_base_patch16_xp_224@96",
    "ViT, registers": "vit_small_patch14_reg4_dinov2@70 vit_little_patch16_reg1_gap_256@96",
    "ViT, SigLIP": "vit_base_patch16_siglip_224@80 vit_base_patch16_siglip_gap_224@80",
    "ViT, relative positions": "vit_relpos_small_patch16_224@96 vit_relpos_base_patch16_cls_224@80",
    "ViT, hybrid": "vit_tiny_r_s16_p8_224@128 vit_small_r26_s32_224@128",
    "ViT, SAM": "samvit_base_patch16_224@96",
    "DeiT": "deit_tiny_patch16_224@80 deit_tiny_distilled_patch16_224@80 "
    "deit3_small_patch16_224@80",
    "BEiT": "beit_base_patch16_224@96 beitv2_base_patch16_224@80",
    "EVA": "eva02_tiny_patch14_224@70 vit_tiny_patch16_dinov3_qkvb@96 "
    "vit_pe_core_tiny_patch16_384@96 vit_small_patch16_rope_224@80",
    "CaiT": "cait_xxs24_224@80",
    "XCiT": "xcit_nano_12_p16_224@96",
    "TNT": "tnt_s_patch16_224@80",
    "PiT": "pit_ti_224@128 pit_ti_distilled_224@128",
    "ConViT": "convit_tiny@80",
    "CrossViT": "crossvit_tiny_240@240",
    "VOLO": "volo_d1_224@96",
    "Swin": "swin_tiny_patch4_window7_224@128",
    "Swin v2": "swinv2_tiny_window8_256@128",
    "Swin v2, cr": "swinv2_cr_tiny_224@128 swinv2_cr_tiny_ns_224@128",
    "NesT": "nest_tiny@96",
    "Hiera": "hiera_tiny_224@128 hieradet_small@128",
    "MViT v2": "mvitv2_tiny@128 mvitv2_small_cls@128",
    "MaxViT, CoAtNet": "test_maxvit@160 maxvit_pico_rw_256@128 coatnet_pico_rw_224@128 "
    "test_coatnet@96",
    "MobileViT": "mobilevit_xxs@128 mobilevitv2_050@128",
    "EfficientViT": "efficientvit_b0@128 efficientvit_l1@128 efficientvit_m0@224",
    "EfficientFormer": "efficientformer_l1@224 efficientformerv2_s0@128",
    "EfficientViM": "efficientvim_m1@128",
    "PVT v2": "pvt_v2_b0@128 pvt_v2_b2_li@128",
    "Twins": "twins_pcpvt_small@128 twins_svt_small@128",
    "CoaT": "coat_lite_tiny@128 coat_tiny@128",
    "LeViT": "levit_128s@224 levit_conv_128s@224",
    "TinyViT": "tiny_vit_5m_224@128",
    "DaViT": "davit_tiny@128",
    "GCViT": "gcvit_xxtiny@128",
    "FocalNet": "focalnet_tiny_srf@128",
    "EdgeNeXt": "edgenext_xx_small@128",
    "NextViT": "nextvit_small@128",
    "SwiftFormer": "swiftformer_xs@128",
    "SHViT": "shvit_s1@224",
    "ViTamin": "vitamin_small_224@128",
    "Visformer": "visformer_tiny@128",
    "iFormer": "iformer_t@128",
    "Sequencer": "sequencer2d_s@128",
    "Mixers": "mixer_s16_224@96 gmixer_12_224@80 resmlp_12_224@80 gmlp_ti16_224@80",
    "MetaFormer": "poolformer_s12@128 poolformerv2_s12@128 caformer_s18@128 convformer_s18@128",
    "ConvMixer": "convmixer_768_32@70",
    "ConvNeXt": "convnext_zepto_rms@128 convnext_atto@128 convnextv2_atto@128",
    "InceptionNeXt": "inception_next_atto@128",
    "MambaOut": "mambaout_femto@128",
    "FastViT": "fastvit_t8@128",
    "RepViT": "repvit_m0_9@128",
    "GhostNet": "ghostnet_050@128 ghostnetv2_100@128 ghostnetv3_050@128 repghostnet_050@128",
    "StarNet": "starnet_s050@128",
    "FasterNet": "fasternet_t0@128",
    "LowFormer": "lowformer_b0@128",
    "RDNet": "rdnet_tiny@128",
    "ResNet": "resnet18@128 resnet26d@128 seresnext26t_32x4d@128 resnetblur18@128",
    "ResNet v2": "resnetv2_18@128 resnetv2_50x1_bit@96",
    "ResNeSt": "resnest14d@128",
    "Res2Net": "res2next50@96",
    "SENet": "legacy_seresnet18@128",
    "SKNet": "skresnet18@128",
    "TResNet": "tresnet_m@128",
    "ByobNet": "repvgg_a0@128 mobileone_s1@128 gernet_s@128 resnet50_clip@128 gcresnext26ts@96",
    "ByoaNet": "botnet26t_256@256 lambda_resnet26t@128",
    "RegNet": "regnetx_002@128 regnety_002@128 regnetz_005@128",
    "NFNet": "nf_regnet_b0@128 nf_resnet26@96 nfnet_l0@96",
    "HRNet": "hrnet_w18_small@128",
    "DLA": "dla46x_c@128 dla34@96",
    "DPN": "dpn48b@128",
    "VoVNet": "ese_vovnet19b_slim_dw@128 vovnet39a@96",
    "SelecSLS": "selecsls42@192",
    "CSPNet": "cs3darknet_s@128 cspresnext50@96 darknet17@128 cspnext_tiny@128",
    "HGNet": "hgnetv2_b0@128 hgnet_tiny@128",
    "DenseNet": "densenet121@128",
    "VGG": "vgg11@96 vgg11_bn@96",
    "EfficientNet": "efficientnet_b0@192 tf_efficientnetv2_b0@128 tf_efficientnet_lite0@128 "
    "mixnet_s@128",
    "MobileNet": "mobilenetv1_100@128 mobilenetv2_035@128 mobilenetv3_small_050@224 "
    "mobilenetv4_conv_small@128 mobilenetv4_hybrid_medium@192 lcnet_050@224 lcnetv2_small@128",
    "MNASNet": "mnasnet_small@128 semnasnet_075@128",
    "HardCoReNAS": "hardcorenas_a@128",
    "ReXNet": "rexnet_100@128",
    "NASNet": "nasnetalarge@160",
    "PNASNet": "pnasnet5large@160",
    "Xception": "xception41@128 legacy_xception@128",
    "Inception": "inception_v3@160 inception_v4@299 inception_resnet_v2@160",
    "CSATv2": "csatv2@256",
    "NaFlexViT": "naflexvit_base_patch16_gap@96 naflexvit_base_patch16_map@80",
}

_SMALL_VIT: Mapping[str, Any] = {"embed_dim": 96, "depth": 8, "num_heads": 3}
# Smaller, and at full depth if that is cheap: the search is judged, not the weights.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "vit_medium_patch16_gap_256": _SMALL_VIT,
    "vit_base_patch32_clip_224": _SMALL_VIT,
    "vit_base_patch16_xp_224": _SMALL_VIT,
    "vit_small_patch14_reg4_dinov2": _SMALL_VIT,
    "vit_little_patch16_reg1_gap_256": _SMALL_VIT,
    "vit_base_patch16_siglip_224": _SMALL_VIT,
    "vit_base_patch16_siglip_gap_224": _SMALL_VIT,
    "vit_relpos_small_patch16_224": _SMALL_VIT,
    "vit_relpos_base_patch16_cls_224": _SMALL_VIT,
    "samvit_base_patch16_224": _SMALL_VIT | {"global_attn_indexes": (3, 7)},
    "deit3_small_patch16_224": _SMALL_VIT,
    "beit_base_patch16_224": _SMALL_VIT,
    "beitv2_base_patch16_224": _SMALL_VIT,
    "vit_small_patch16_rope_224": _SMALL_VIT,
    "swin_tiny_patch4_window7_224": {"window_size": 4, "depths": (2, 2, 4, 2)},
    "swinv2_tiny_window8_256": {"window_size": 4, "depths": (2, 2, 4, 2)},
    "vgg11": {"mlp_ratio": 0.125},
    "vgg11_bn": {"mlp_ratio": 0.125},
    "naflexvit_base_patch16_gap": {"embed_dim": 96, "depth": 8, "num_heads": 3},
    "naflexvit_base_patch16_map": {"embed_dim": 96, "depth": 8, "num_heads": 3},
}


# Registered variants are too deep here: with random weights, little is left of place.
CLASSES: Mapping[str, Callable[[int], nn.Module]] = {
    "convmixer_768_32": lambda n_classes: timm.models.ConvMixer(
        dim=128, depth=8, kernel_size=5, patch_size=7, num_classes=n_classes
    ),
}


def timm_cases(wider: int = 0) -> list[Case]:
    """Return the networks of timm, for images that are wider than high by some pixels."""
    return [
        _timm_case(family, name, (int(size), int(size) + wider))
        for family, names in TIMM.items()
        for name, size in (each.split("@") for each in names.split())
    ]


def _timm_case(family: str, name: str, size: tuple[int, int]) -> Case:
    options = dict(OPTIONS.get(name, {}))

    def build(n_classes: int) -> nn.Module:
        if name in CLASSES:
            return CLASSES[name](n_classes)
        try:
            return timm.create_model(name, num_classes=n_classes, img_size=size, **options)
        except (TypeError, AssertionError):  # a network that takes any size, or only one
            return timm.create_model(name, num_classes=n_classes, **options)

    return Case("timm", family, name, size, build)


# transformers': a class of networks, a class of configurations, the size, and small settings.
_VIT: Mapping[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 96,
    "patch_size": 16,
}
_SWIN: Mapping[str, Any] = {
    "image_size": 128,
    "embed_dim": 24,
    "depths": [1, 2, 4, 2],
    "num_heads": [1, 2, 4, 8],
    "window_size": 4,
}
_HF: tuple[tuple[str, str, str, int, Mapping[str, Any]], ...] = (
    ("ViT", "ViTForImageClassification", "ViTConfig", 96, _VIT),
    ("DeiT", "DeiTForImageClassification", "DeiTConfig", 96, _VIT),
    ("DeiT", "DeiTForImageClassificationWithTeacher", "DeiTConfig", 96, _VIT),
    ("BEiT", "BeitForImageClassification", "BeitConfig", 96, _VIT),
    ("Data2Vec", "Data2VecVisionForImageClassification", "Data2VecVisionConfig", 96, _VIT),
    ("ViT-MSN", "ViTMSNForImageClassification", "ViTMSNConfig", 96, _VIT),
    ("DINOv2", "Dinov2ForImageClassification", "Dinov2Config", 96, _VIT),
    (
        "DINOv2, registers",
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        96,
        _VIT,
    ),
    ("DINOv3", "DINOv3ViTForImageClassification", "DINOv3ViTConfig", 96, _VIT),
    ("I-JEPA", "IJepaForImageClassification", "IJepaConfig", 96, _VIT),
    ("Swin", "SwinForImageClassification", "SwinConfig", 128, _SWIN),
    ("Swin v2", "Swinv2ForImageClassification", "Swinv2Config", 128, _SWIN),
    (
        "ConvNeXt",
        "ConvNextForImageClassification",
        "ConvNextConfig",
        128,
        {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 24, 32, 48]},
    ),
    (
        "ConvNeXt v2",
        "ConvNextV2ForImageClassification",
        "ConvNextV2Config",
        128,
        {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 24, 32, 48]},
    ),
    (
        "ResNet",
        "ResNetForImageClassification",
        "ResNetConfig",
        128,
        {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]},
    ),
    (
        "RegNet",
        "RegNetForImageClassification",
        "RegNetConfig",
        128,
        {
            "embedding_size": 16,
            "hidden_sizes": [16, 32, 32, 48],
            "depths": [1, 1, 2, 1],
            "groups_width": 8,
        },
    ),
    ("MobileViT", "MobileViTForImageClassification", "MobileViTConfig", 128, {"image_size": 128}),
    (
        "MobileViT v2",
        "MobileViTV2ForImageClassification",
        "MobileViTV2Config",
        128,
        {"image_size": 128, "width_multiplier": 0.5},
    ),
    (
        "MobileNet v1",
        "MobileNetV1ForImageClassification",
        "MobileNetV1Config",
        128,
        {"depth_multiplier": 0.5},
    ),
    (
        "MobileNet v2",
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        128,
        {"depth_multiplier": 0.5},
    ),
    (
        "PVT",
        "PvtForImageClassification",
        "PvtConfig",
        128,
        {"image_size": 128, "depths": [1, 1, 2, 2], "hidden_sizes": [16, 32, 40, 64]},
    ),
    (
        "PVT v2",
        "PvtV2ForImageClassification",
        "PvtV2Config",
        128,
        {"image_size": 128, "depths": [1, 1, 2, 2], "hidden_sizes": [16, 32, 40, 64]},
    ),
    (
        "SegFormer",
        "SegformerForImageClassification",
        "SegformerConfig",
        128,
        {"depths": [1, 1, 2, 2], "hidden_sizes": [16, 32, 40, 64]},
    ),
    (
        "CvT",
        "CvtForImageClassification",
        "CvtConfig",
        96,
        {
            "embed_dim": [16, 32, 48],
            "num_heads": [1, 2, 3],
            "depth": [1, 2, 4],
        },
    ),
    ("LeViT", "LevitForImageClassification", "LevitConfig", 224, {"hidden_sizes": [64, 96, 128]}),
    (
        "LeViT",
        "LevitForImageClassificationWithTeacher",
        "LevitConfig",
        224,
        {"hidden_sizes": [64, 96, 128]},
    ),
    (
        "PoolFormer",
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        128,
        {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]},
    ),
    (
        "FocalNet",
        "FocalNetForImageClassification",
        "FocalNetConfig",
        128,
        {"image_size": 128, "embed_dim": 24, "depths": [1, 1, 2, 1]},
    ),
    (
        "EfficientNet",
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        128,
        {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    ),
    (
        "EfficientFormer",
        "EfficientFormerForImageClassification",
        "EfficientFormerConfig",
        224,
        {},
    ),
    (
        "Hiera",
        "HieraForImageClassification",
        "HieraConfig",
        128,
        {"image_size": [128, 128], "embed_dim": 24, "depths": [1, 1, 3, 2]},
    ),
    (
        "BiT",
        "BitForImageClassification",
        "BitConfig",
        128,
        {
            "embedding_size": 32,
            "hidden_sizes": [32, 64, 64, 96],
            "depths": [1, 1, 2, 1],
            "num_groups": 8,
        },
    ),
    (
        "SigLIP",
        "SiglipForImageClassification",
        "SiglipConfig",
        96,
        {"vision_config": _VIT, "text_config": {"hidden_size": 48, "intermediate_size": 96}},
    ),
    (
        "CLIP",
        "CLIPForImageClassification",
        "CLIPConfig",
        96,
        {"vision_config": _VIT, "text_config": {"hidden_size": 48, "intermediate_size": 96}},
    ),
    ("VAN", "VanForImageClassification", "VanConfig", 128, {}),
    (
        "SwiftFormer",
        "SwiftFormerForImageClassification",
        "SwiftFormerConfig",
        224,
        {},
    ),
    ("TextNet", "TextNetForImageClassification", "TextNetConfig", 128, {}),
    (
        "HGNet v2",
        "HGNetV2ForImageClassification",
        "HGNetV2Config",
        128,
        {
            "stem_channels": [3, 8, 16],
            "stage_in_channels": [16, 24, 32, 48],
            "stage_mid_channels": [8, 12, 16, 24],
            "stage_out_channels": [24, 32, 48, 64],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_numb_of_layers": [2, 2, 2, 2],
            "hidden_sizes": [24, 32, 48, 64],
        },
    ),
)


def transformers_cases(wider: int = 0) -> list[Case]:
    """Return the networks of transformers, for images that are wider than high by some pixels."""
    import transformers  # takes seconds, and is only needed here

    transformers.logging.set_verbosity_error()
    return [
        _transformers_case(family, name, config, (size, size + wider), small)
        for family, name, config, size, small in _HF
        if hasattr(transformers, name)
    ]


def _transformers_case(
    family: str, name: str, config: str, size: tuple[int, int], options: Mapping[str, Any]
) -> Case:
    def build(n_classes: int) -> nn.Module:
        import transformers

        settings = dict(options)
        if "image_size" in settings and size[0] != size[1]:
            settings["image_size"] = list(size)
        kind = getattr(transformers, config)
        return getattr(transformers, name)(kind(num_labels=n_classes, **settings))

    return Case("transformers", family, name, size, build)
