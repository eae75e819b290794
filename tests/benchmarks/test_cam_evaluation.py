"""The program of Poppi et al.'s table, on a handful of synthetic images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from sklcam import CAMExplainer
from sklcam.networks import TargetLayer

SMALL = ["--image-size", "64", "--images-curves", "2", "--n-steps", "2", "--chunk", "2"]
QUICKEST = [*SMALL, "--images-perturbation", "2", "--device", "cpu"]


@pytest.fixture
def tiny(monkeypatch):
    """Have every network be a small one, of two convolutions and pooling."""
    import cam_evaluation
    import cam_runs

    torch.manual_seed(0)
    relu = nn.ReLU()  # the layer that is explained runs twice, as EfficientNet-Lite's does
    network = nn.Sequential(
        *(nn.Conv2d(3, 6, 5, stride=4), relu, nn.Conv2d(6, 6, 3), relu),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )
    last, classes = TargetLayer("1", run=-1), ["blue", "green", "red"]
    explainer = CAMExplainer(network, target_layer=last, classes=classes, image_size=64, verbose=0)
    for program in (cam_evaluation, cam_runs):
        monkeypatch.setattr(program, "explainer_of", lambda *_: explainer.fit())
    return cam_evaluation


def lines_of(capsys):
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_table_of_a_handful(tiny, splits, tmp_path, capsys, monkeypatch):
    known, rst = tmp_path / "known.jsonl", tmp_path / "table.rst"
    methods = ["fakecam", "gradcam", "xgradcam", "gradcam++", "scorecam"]
    call = ["--quick", "--data", str(splits), "--arch", "some_net", *QUICKEST]
    call += ["--methods", *methods, "--results", str(known), "--rst", str(rst)]
    tiny.main([*call, "--images", "4", "--precision", "bf16"])
    lines = lines_of(capsys)
    assert any(
        line.startswith("some_net (DEFAULT) at 64 pixels, ") and " of 4 right" in line
        for line in lines
    )
    assert any(line.startswith("gradcam++ 4 (curves 2) ") for line in lines)
    assert any(line.startswith("scorecam, bf16 2 ") for line in lines)
    assert "paper, resnet50 50000 32.99 24.27 17.49 48.48 82.80 22.24 75.27" in lines
    (same,) = [line for line in lines if "even gradients" in line]
    assert same.endswith("holds")
    assert sum("Fake-CAM" in line for line in lines) == 3
    assert rst.read_text().count(".. list-table::") == 2
    # Of more images, only those that are new are measured.
    n_chunks = len(known.read_text().splitlines())
    assert n_chunks == 4 * (2 + 1) + 1  # the curves apart, but for Score-CAM
    tiny.main([*call, "--images", "6", "--precision", "bf16"])
    entries = [json.loads(line) for line in known.read_text().splitlines()]
    assert len(entries) == n_chunks + 4
    assert all(json.loads(entry["key"])["start"] == 4 for entry in entries[n_chunks:])
    # And what is known is shown without a network.
    capsys.readouterr()
    monkeypatch.setattr(tiny, "explainer_of", None)
    tiny.main([*call, "--images", "6", "--precision", "bf16", "--known"])
    assert any(line.startswith("gradcam++ 6 (curves 2) ") for line in lines_of(capsys))


def test_a_network_is_trained_here(splits, capsys):
    import cam_evaluation

    call = ["--quick", "--data", str(splits), "--arch", "squeezenet1_1", "--weights", "none"]
    call += ["--images", "2", "--epochs", "1", "--methods", "gradcam", "xgradcam", "cam"]
    cam_evaluation.main([*call, *QUICKEST, "--metrics", "adcc"])
    lines = lines_of(capsys)
    assert any(line.startswith("squeezenet1_1 (none) at 64 pixels, ") for line in lines)
    assert any("XGrad-CAM" in line for line in lines) and not any(" cam " in line for line in lines)


def test_gradients_are_even_behind_pooling_alone(tiny):
    from cam_runs import has_uniform_gradients

    explainer, inputs = tiny.explainer_of(), torch.rand(2, 3, 64, 64)
    assert has_uniform_gradients(explainer, inputs)
    network = nn.Sequential(*explainer.model_[:4], nn.Flatten(), nn.Linear(6 * 13 * 13, 3))
    last = explainer.target_layers_[0]
    other = CAMExplainer(network, target_layer=last, image_size=64, verbose=0).fit()
    assert not has_uniform_gradients(other, inputs)


def test_adcc_is_the_papers():
    from cam_evaluation import COLUMNS, PAPER, figure

    # Equation 5 of the averages that the paper prints, whose ADCC was of more digits.
    for rows in PAPER.values():
        for method, row in rows.items():
            of = dict(zip(COLUMNS, map(float, row.split()), strict=True))
            terms = [np.array([of[name]]) for name in ("average_drop", "coherency", "complexity")]
            # Of Fake-CAM one complexity of 100.00 is rounded.
            expected = 0 if method == "fakecam" else of["adcc"]
            assert figure("adcc", terms) == pytest.approx(expected, abs=0.05), (method, row)


def test_claims_by_hand():
    from cam_evaluation import Chunk, Values, claims_of

    drops = {"fakecam": 0.01, "gradcam": 0.3, "scorecam": 0.2}
    place = ("net", "DEFAULT", None, None, None)

    def chunk(method, n_images):
        images = tuple(f"class/{i}.png" for i in range(n_images))
        rest = {"precision": "fp32", "metrics": ("average_drop",), "n_steps": 2, "labels": None}
        rest |= {"images": images, "start": 0, "batch_size": 2, "device": "cpu"}
        return Chunk(*place, method=method, **rest)

    chunks = [chunk(name, 2 if name == "scorecam" else 4) for name in drops]
    results = {c: {"average_drop": [drops[c.method]] * len(c.images)} for c in chunks}
    values = Values(chunks, results)
    found = {c.text: c for c in claims_of("net", values, ["average_drop"])}
    control = found["net: Fake-CAM loses less confidence than any other method"]
    # Of the two images that all three have explained.
    assert control.n_images == 2 and control.verdict == "holds"
    assert control.value == pytest.approx(19) and control.low == pytest.approx(19)
    best = found["net: Score-CAM loses the least confidence"]
    assert best.value == pytest.approx(10)
    worse = found["net: Grad-CAM loses more confidence than Score-CAM"]
    assert worse.value == pytest.approx(10) and len(found) == 3


def test_weights_of_a_file_are_known_by_what_they_hold(tmp_path):
    from cam_runs import fingerprint

    paths = [tmp_path / place / "weights.pt" for place in "abc"]
    for path, content in zip(paths, (b"some", b"some", b"others"), strict=True):
        path.parent.mkdir()
        path.write_bytes(content)
    first, copied, other = map(fingerprint, map(str, paths))
    assert first == copied != other and fingerprint("DEFAULT") == "DEFAULT"


def test_labels_are_those_of_the_network():
    from argparse import Namespace

    from cam_runs import known_labels

    ids = ["n00000002", "n00000005", "n00000009"]
    numbers = Namespace(classes_=np.arange(3), class_names_=["tench", "goldfish", "shark"])
    assert known_labels(numbers, [ids[2], ids[0]], ids) == [2, 0]  # in the order of their ids
    assert known_labels(numbers, ["shark", "tench"], ["shark", "tench"]) == ["shark", "tench"]
    assert known_labels(numbers, ["shark", "car"], ["car", "shark"]) is None
    assert known_labels(numbers, ids[:2], ids[:2]) is None  # which of the three are they?


def test_chunks_draw_other_numbers():
    from argparse import Namespace

    from cam_runs import method_of

    seeds = [
        method_of(Namespace(method="sscam", precision="fp32", start=start)).random_state
        for start in (0, 20)
    ]
    assert seeds[0] != seeds[1] and None not in seeds
