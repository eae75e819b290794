"""The code in the how-to pages of what maps are for runs as it stands, from top to bottom.

What a page takes for granted, such as a network and its images, is made here, as small as can be.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_howto_blocks import blocks
from torch import nn

import sklcam
from sklcam import CAMExplainer, ConsistentCAMClassifier

TESTS = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
LABELS = np.repeat(["cat", "dog"], 12)
PICTURES = RNG.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
MASKS = np.zeros((24, 32, 32), dtype=bool)
MASKS[:, 4:16, 4:16] = True


def small_network(n_outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    seeing = nn.Sequential(nn.Conv2d(3, 8, 3, 4, padding=1), nn.ReLU())
    return nn.Sequential(seeing, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_outputs))


def explainer_of(network: nn.Module) -> CAMExplainer:
    options = {"target_layer": "0", "classes": ["cat", "dog"], "verbose": 0}
    return CAMExplainer(network, image_size=32, mean=0.5, std=0.5, **options).fit(PICTURES)


def classifier(max_epochs: int = 1) -> ConsistentCAMClassifier:
    options = {"target_layer": "0", "batch_size": 24, "verbose": 0, "random_state": 0}
    return ConsistentCAMClassifier(
        lambda num_classes, in_channels: small_network(num_classes),
        image_size=32, alpha=0, beta=0, max_epochs=max_epochs, **options
    )  # fmt: skip


def of_words(monkeypatch, folder):
    transformers = pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(TESTS / "language")
    import writers

    vilt = writers.vilt()
    vilt.config.id2label = {0: "two", 1: "a ball", 2: "no"}
    sizes = {"height": 32, "width": 32}
    processor = transformers.BlipProcessor(
        transformers.BlipImageProcessor(size=sizes), writers.tokenizer(folder)
    )
    for name, made in (
        ("BlipForConditionalGeneration", writers.blip()),
        ("ViltForQuestionAnswering", vilt),
        ("AutoProcessor", processor),
    ):
        monkeypatch.setattr(
            getattr(transformers, name), "from_pretrained", lambda name, made=made: made
        )
    seeing = nn.Sequential(nn.Conv2d(3, 8, 3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return {
        "images": PICTURES[:2],
        "captions": ["a red dog", "a red ball"],
        "nouns": ["dog", "ball"],
        "boxes": [np.array([[4, 4, 16, 16]])] * 2,
        "human_attention": MASKS[:2].astype(np.float32),
        "cnn": nn.Sequential(seeing, nn.Flatten(), nn.Linear(8, 512)),
    }


class Pair(nn.Module):
    """Embeds images as CLIP does, and texts by their number."""

    def __init__(self):
        super().__init__()
        self.features, self.words = nn.Conv2d(3, 3, 3, 8), nn.Embedding(3, 3)

    def encode_image(self, images):
        return self.features(images).mean((2, 3))

    def encode_text(self, tokens):
        return self.words(tokens)


def of_concepts(monkeypatch, folder):
    torch.manual_seed(0)
    seeing = nn.Sequential(nn.Conv2d(3, 18, 3, 8), nn.ReLU())  # the page draws channel 17
    network = nn.Sequential(seeing, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(18, 2))
    made = explainer_of(network).set_params(classes=["banana", "lemon"])
    monkeypatch.setattr(sklcam, "CAMExplainer", lambda name, weights: made)
    fur, water = MASKS[:8], MASKS[:8, ::-1, ::-1]
    X = PICTURES[:8] // 4
    X[fur], X[water] = (255, 0, 0), (0, 0, 255)
    return {
        "X": X, "X_test": X[:2], "fur": fur, "water": water,
        "boxes": [{"fur": np.array([[4, 4, 16, 16]]), "water": np.array([[16, 16, 28, 28]])}] * 8,
        "masks_of_test": {"fur": fur[:2], "water": water[:2]},
        "network": Pair(), "processor": lambda prompts: torch.arange(len(prompts)),
        "embed_images": lambda crops: np.array([np.asarray(crop).mean((0, 1)) for crop in crops]),
        "embed_texts": lambda texts: np.eye(3)[: len(texts)],
    }  # fmt: skip


def of_shortcuts(monkeypatch, folder):
    clf = classifier().fit(PICTURES, LABELS)
    return {"network": clf.module_, "clf": clf, "X": PICTURES, "y": LABELS, "rng": RNG}


def of_segmentation(monkeypatch, folder):
    files = [str(folder / f"{i}.png") for i in range(len(PICTURES))]
    for path, picture in zip(files, PICTURES, strict=True):
        Image.fromarray(picture).save(path)
    clf = classifier().fit(PICTURES, LABELS)
    masks = MASKS * np.repeat([1, 2], 12)[:, None, None]
    return {
        "clf": clf,
        "X": PICTURES,
        "y": LABELS,
        "X_test": PICTURES,
        "masks": masks,
        "files": files,
        "network": lambda images: {"out": torch.zeros(2, 3, 4, 4)},
        "images": None,
        "labels": torch.zeros(2, 4, 4, dtype=torch.int64),
    }


def of_measure(monkeypatch, folder):
    explainers = [explainer_of(small_network()) for _ in range(2)]
    return {
        "clf": explainers[0], "baseline": explainers[1], "X": PICTURES[::6], "y": LABELS[::6],
        "cameras": ["old", "new"] * 2, "masks": MASKS[::6],
        "boxes": [np.array([[4, 4, 16, 16]])] * 4,
    }  # fmt: skip


def of_study(monkeypatch, folder):
    networks = small_network(), small_network()
    with torch.no_grad():  # the second is right about fewer
        scores = networks[1](torch.from_numpy(PICTURES).permute(0, 3, 1, 2) / 127.5 - 1)
        networks[1][3].bias[1] -= (scores[:, 1] - scores[:, 0]).median()
    explainers = [explainer_of(network) for network in networks]
    return {
        "explainer": explainers[0], "better": explainers[0], "worse": explainers[1],
        "X": PICTURES, "y": explainers[0].predict(PICTURES), "label_sets": [{"cat", "dog"}] * 24,
    }  # fmt: skip


def hand_in(key: dict, folder: Path) -> None:
    """Save what two raters answer, who pass all checks."""
    folder.mkdir()
    for rater in ("Ann", "Bob"):
        answers = [
            {"item": name, "value": item.get("truth", 1), "swapped": False, "seconds": 2.0}
            for name, item in key["items"].items()
        ]
        head = {"format": "sklcam-study-answers", "version": 1, "study": key["study"]}
        text = json.dumps({**head, "rater": rater, "answers": answers})
        (folder / f"{rater}.json").write_text(text)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "page", ["concepts", "words", "shortcuts", "segmentation", "measure", "study"]
)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "page", **globals()[f"of_{page}"](monkeypatch, tmp_path)}
    for block in blocks(f"{page}.rst"):
        code = block.replace("image_size=384", "image_size=32")  # few patches
        code = code.replace("n_jobs=2", "n_jobs=1")  # processes take seconds to start
        exec(compile(code, page, "exec"), scope)
        if "study.build" in block:  # raters answer between the blocks
            name = "answers_of_models" if 'kind="reliability"' in block else "answers"
            hand_in(scope["key"], tmp_path / name)
        elif "study.analyse" in block:
            scope["of_classes"], analyse = scope["result"], scope["study"].analyse
            answers = sorted((tmp_path / "answers_of_models").iterdir())
            scope["of_models"] = analyse(answers, "reliability.key.json")
