"""The code in the how-to pages of names and explanations runs as it stands, from top to bottom.

What they download is made here: a small network for ResNet-50, random weights, a data set.
"""

import re
import textwrap
from collections import OrderedDict
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

PAGES = Path(__file__).parents[2] / "docs" / "howto"
SMALL_VIT = {"depth": 12, "embed_dim": 24, "num_heads": 3, "pretrained": False}


def blocks(page: str) -> list[str]:
    text = (PAGES / page).read_text()
    found = re.findall(r"^\.\. code-block:: python\n\n((?:   .*\n|\n)+)", text, re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def small_network(weights: object = None) -> nn.Module:
    def layer(n_in: int, n_out: int, stride: int) -> nn.Module:
        kernel = nn.Conv2d(n_in, n_out, 3, stride, padding=1)
        return nn.Sequential(kernel, nn.BatchNorm2d(n_out), nn.ReLU())

    torch.manual_seed(0)
    parts = {
        **{"layer1": layer(3, 6, 4), "layer2": layer(6, 6, 2), "layer3": layer(6, 6, 2)},
        **{"layer4": layer(6, 6, 2), "avgpool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()},
        "fc": nn.Linear(6, 1000),
    }
    return nn.Sequential(OrderedDict(parts))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """What the pages name, small and without a download."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, size, np.uint8) for size in ((40, 60, 3), (50, 30, 3))]
    for name, image in zip(("tabby", "boxer"), pixels, strict=True):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "photos" / name / "1.png")
    for name, image in zip(("cat.jpg", "dog.jpg"), pixels, strict=True):
        Image.fromarray(image).save(name)
    monkeypatch.setattr(torchvision.models, "resnet50", small_network)

    real = timm.create_model

    def create(name: str, **options: object) -> nn.Module:
        return real(name, **(options | (SMALL_VIT if name.startswith("vit") else {})))

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ViTForImageClassification(ViTConfig(**sizes, intermediate_size=32)).save_pretrained("my-vit")
    ViTImageProcessor().save_pretrained("my-vit")
    return tmp_path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", ["explain.rst", "names.rst", "timm_and_transformers.rst"])
def test_the_blocks_of_a_page_run(page, offline, monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = [{"image": Image.open("cat.jpg"), "label": 0}, {"image": Image.open("dog.jpg")}]
    food = datasets.IterableDataset.from_generator(lambda: iter(rows))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: food)
    scope: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        code = block.replace("//data/my-vit", f"/{offline}/my-vit")
        code = code.replace("google/vit-base-patch16-224", f"{offline}/my-vit")
        exec(compile(code, page, "exec"), scope)
    assert len(blocks(page)) >= 3


@pytest.mark.filterwarnings("ignore")
def test_both_sides_of_other_libraries_agree(monkeypatch):
    page = "from_other_libraries.rst"

    def network(weights: object = None) -> nn.Module:
        made = small_network()
        with torch.no_grad():  # no map is blank, and no gradient near a peer's epsilon
            made.fc.weight[3].abs_().mul_(1000)
        return made

    monkeypatch.setattr(torchvision.models, "resnet18", network)
    scope: dict[str, object] = {"__name__": "page"}
    first, *others = blocks(page)
    exec(compile(first, page, "exec"), scope)
    agree, compared = scope["agree"], []
    scope["agree"] = lambda ours, theirs: compared.append(ours) or agree(ours, theirs)
    for block in others:
        exec(compile(block, page, "exec"), scope)
    assert len(compared) == 10  # three pairs in a loop
    assert all(np.abs(maps).max(axis=(1, 2)).min() > 0.01 for maps in compared)
    with pytest.raises(AssertionError):
        agree(compared[0], compared[0] + 1e-3)
