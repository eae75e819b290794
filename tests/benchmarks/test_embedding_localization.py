"""The program of Bachhawat's table 1, on a handful of images with boxes and masks."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from PIL import Image
from torch import nn

from sklcam import EmbeddingCAMExplainer
from sklcam.networks import TargetLayer

SMALL = [
    *[
        "--quick",
        "--arch",
        "resnet18",
        "--weights",
        "none",
        "--image-size",
        "48",
        "--inits",
        "1",
        "--device",
        "cpu",
    ],
    *["--images-seen", "8", "--batch-size", "4", "--embedding-dim", "8", "--peer-images", "2"],
    *["--rounds", "1"],
]


@pytest.fixture
def birds(tmp_path):
    """Return a tree like that of CUB-200: a square of 24 on 48 pixels, its upper half the bird."""
    rng = np.random.default_rng(0)
    tables = {name: [] for name in ("images", "classes", "image_class_labels")}
    tables |= {"train_test_split": [], "bounding_boxes": []}
    for label in range(1, 5):
        tables["classes"].append(f"{label} {label:03}.Bird")
        for i in range(1, 4):
            key, (row, column) = 10 * label + i, rng.integers(0, 24, 2)
            pixels, mask = rng.integers(0, 90, (48, 48, 3), dtype=np.uint8), np.zeros((48, 48))
            pixels[row : row + 24, column : column + 24, label % 3] += 150
            mask[row : row + 12, column : column + 24] = 255
            for folder, suffix, image in (
                ("images", "jpg", pixels),
                ("segmentations", "png", mask),
            ):
                path = tmp_path / "CUB" / folder / f"{label:03}.Bird" / f"{i}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.astype(np.uint8)).save(path)
            tables["images"].append(f"{key} {label:03}.Bird/{i}.jpg")
            tables["image_class_labels"].append(f"{key} {label}")
            tables["train_test_split"].append(f"{key} {i % 2}")
            tables["bounding_boxes"].append(f"{key} {column} {row} 24 24")
    for name, lines in tables.items():
        (tmp_path / "CUB" / f"{name}.txt").write_text("\n".join(lines))
    return tmp_path / "CUB"


def test_an_open_set_with_masks_is_measured_once(birds, tmp_path, capsys, monkeypatch):
    import embedding_localization

    kept, table = tmp_path / "runs.jsonl", tmp_path / "table.rst"
    call = [*SMALL, "--data", str(birds), "--results", str(kept), "--rst", str(table)]
    embedding_localization.main(call)  # which fails where pytorch-grad-cam has other maps
    printed, written = capsys.readouterr().out, table.read_text()
    entries = [json.loads(line)["measures"] for line in kept.read_text().splitlines()]
    assert len(entries) == 2  # the network as it is, and one that is trained
    for entry in entries:
        # Of the six birds of the second half, a box is a quarter of an image, a bird half of that,
        # and a box as large as the image has an IoU of a quarter with it.
        uniform = entry["rows"]["uniform"]["all channels"]
        assert uniform["box"] == pytest.approx([1 / 4] * 6)
        assert uniform["mask"] == pytest.approx([1 / 8] * 6)
        assert uniform["fits"] == [[0] * 6] * 8
        for name in ("Chen et al.", "single point", "mean proxy", "contrast"):
            for channels in ("all channels", "top 50"):
                found = entry["rows"][name][channels]
                assert {len(values) for values in (found["box"], *found["fits"])} == {6}
                assert all(m <= b for b, m in zip(found["box"], found["mask"], strict=True))
        # Each way has maps of its own.
        ways = ("Chen et al.", "single point", "mean proxy", "contrast")
        ratios = [
            entry["rows"][name][channels]["box"]
            for name in ways
            for channels in ("all channels", "top 50")
        ]
        assert all(ratio not in ratios[:i] for i, ratio in enumerate(ratios))
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert any("trained on 6 images of 2 classes; 6 images explained" in line for line in lines)
    assert any("uniform 0.250 (0.250 to 0.250) 0.125 (0.125 to 0.125)" in line for line in lines)
    assert any(line.startswith("CUB, mean proxy: more of the map in the mask") for line in lines)

    monkeypatch.setattr(embedding_localization, "measured", lambda run: pytest.fail("again"))
    embedding_localization.main(call)
    assert table.read_text() == written


def test_open_set_of_folders_keeps_the_unseen_class_out(splits):
    from embedding_runs import read

    with (splits / "green_boxes.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "x1", "y1", "x2", "y2"))
        rows.writerows((f"{part}/green/0.png", 0, 12, 24, 48) for part in ("test", "train"))
    data = read(str(splits), 0.5)
    assert data.train.labels.tolist() == ["blue"] * 6
    assert data.explained.labels.tolist() == ["green"] * 2
    assert data.proxies.labels.tolist() == ["red"] * 2 + ["green"] * 2
    assert data.judged.labels.tolist() == ["green"] * 2 + ["red"] * 2
    assert data.explained.boxes(24)[0].tolist() == [[0, 6, 12, 24]]  # of images of 48 pixels


def test_mixed_scenes_are_neither_trained_on_nor_explained_alone(tmp_path):
    from embedding_runs import pointing, read

    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "x1", "y1", "x2", "y2"))
        for i in range(4):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
            rows.writerow((f"{i}.png", "apple" if i % 2 else "pear", 0, 0, 4, 8))
        rows.writerow(("3.png", "pear", 4, 0, 8, 4))
    data = read(str(tmp_path), 2 / 3)
    assert (len(data.train), len(data.explained)) == (2, 1)
    assert data.scenes.labels.tolist() == ["apple", "pear"]
    # A map that is highest in the upper left corner is right about the apple alone.
    corner = np.zeros((2, 8, 8), dtype=np.float32)
    corner[:, 0, 0] = 1
    found = pointing({"corner": lambda X, y: corner}, data.scenes, 8)
    assert found == {"chance": [0.5, 0.25], "corner": [1, 0]}


def made_up(difference):
    """Return what measures nothing, and finds maps that differ so much from the peer's."""

    def measured(run):
        shares = {"uniform": 0.5, "Chen et al.": 0.6, "single point": 0.8, "mean proxy": 0.4}
        rows = {
            name: {
                channels: {"box": [share] * 4, "mask": [share / 2] * 4, "fits": [[1, 0, 1, 1]] * 8}
                for channels in ("all channels", "top 50")
            }
            for name, share in {**shares, "centre": 0.7, "contrast": 0.7}.items()
        }
        peer = {"difference": difference, "times": [2.0]}
        return run, {"recall": 1, "rows": rows, "pointing": {}, "peer": peer, "seconds": 1}

    return measured


def test_the_map_of_the_centre_is_a_normal_distribution():
    from embedding_runs import blind

    # Its deviation is a quarter of the side: 68.3 % of it lie in the middle half, of either axis,
    # over the 95.4 % that lie in the image.
    centre = blind(64)["centre"]
    assert centre[16:48, 16:48].sum() / centre.sum() == pytest.approx(
        (0.683 / 0.954) ** 2, abs=1e-3
    )


def test_claims_are_of_what_was_measured(birds, capsys, monkeypatch):
    import embedding_localization

    monkeypatch.setattr(embedding_localization, "measured", made_up(0.0))
    embedding_localization.main([*SMALL, "--data", str(birds)])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for claim in (
        "CUB, single point: more of the map in the box than for a uniform one +30.0 points +30.0 "
        "to +30.0 holds",
        "CUB, mean proxy: more of the map in the mask than for a uniform one -5.0 points -5.0 to "
        "-5.0 does not hold",
        "CUB, single point: more of the map in the box than with Chen et al., all channels +20.0 "
        "points +20.0 to +20.0 holds",
        "CUB, mean proxy (not in the paper): more of the map in the box than before training "
        "+0.0 points -0.0 to +0.0 no image differs",
    ):
        assert claim in [line.replace("+0.0 to +0.0", "-0.0 to +0.0") for line in lines]
    above_60 = [line for line in lines if "accuracy above 60" in line]
    assert len(above_60) == 2 and all("+15.0 points" in line for line in above_60)


def test_a_deviation_has_the_interval_of_a_normal_one():
    from embedding_localization import stable

    # With two degrees of freedom, the quantiles of chi-squared are 0.0506 and 7.378 (tables).
    claim = stable("mean proxy", np.array([[70.0], [71.0], [72.0]]))
    assert claim.value == pytest.approx(0)
    assert claim.low == pytest.approx(1 - np.sqrt(2 / 0.0506), rel=1e-3)
    assert claim.high == pytest.approx(1 - np.sqrt(2 / 7.378), rel=1e-3)
    assert claim.verdict == "cannot be told"


def test_other_maps_than_the_peers_end_the_program(birds, monkeypatch):
    import embedding_localization

    monkeypatch.setattr(embedding_localization, "measured", made_up(0.1))
    with pytest.raises(SystemExit, match="Maps differ"):
        embedding_localization.main([*SMALL, "--data", str(birds)])


class RunsTwice(nn.Module):
    """Two convolutions with the same activation after each, as EfficientNet-Lite has them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3)
        self.act, self.head = nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x):
        x = self.act(self.second(self.act(self.first(x))))
        return self.head(x.mean(dim=(2, 3)))


@pytest.mark.filterwarnings("ignore::sklcam.explain.ExplanationWarning")
def test_the_peer_explains_the_last_run_of_a_layer(monkeypatch):
    import embedding_runs

    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    layer = TargetLayer("act", run=1)
    explainer = EmbeddingCAMExplainer(RunsTwice(), target_layer=layer, verbose=0)
    explainer.fit(images, ["a", "a", "b", "b"])
    run = Namespace(device="cpu", rounds=1)
    assert embedding_runs.compared_with_peer(explainer, images, run)["difference"] < 1e-5
    monkeypatch.setattr(embedding_runs, "LastRun", pytorch_grad_cam.GradCAM)
    assert embedding_runs.compared_with_peer(explainer, images, run)["difference"] > 0.1


def test_claims_by_hand():
    from embedding_localization import CONTRAST, Found, claims_of, claims_of_scenes

    def found(**rows):
        """Return what was measured of a network: by method, shares in boxes, and accuracies."""
        names = {"chen": "Chen et al.", "single": "single point", "mean": "mean proxy"}
        measures = {
            names.get(name, name): {
                channels: {"box": [share] * 4, "fits": [[fits] * 4 for fits in accuracies]}
                for channels, share in zip(("all channels", "top 50"), shares, strict=False)
            }
            for name, (accuracies, *shares) in rows.items()
        }
        return Found(
            [{"rows": measures, "pointing": {CONTRAST: [0.9] * 4, names["mean"]: [0.4] * 4}}]
        )

    # Of eight thresholds the fourth is the paper's.
    trained = found(
        uniform=([0] * 8, 0.2),
        centre=([0] * 8, 0.5),
        chen=([0, 0, 0, 0.72, 0, 0, 0, 0], 0.4, 0.6),
        single=([0.9, 0.8, 0.7, 0.7, 0.7, 0.6, 0.5, 0.7], 0.7, 0.65),
        mean=([0.9, 0.8, 0.7, 0.6, 0.7, 0.7, 0.65, 0.55], 0.8, 0.7),
    )
    as_it_is = found(uniform=([0] * 8, 0.2), single=([0] * 8, 0.3), mean=([0] * 8, 0.35))
    claims = claims_of("birds", trained, as_it_is, ["box"])
    assert [claim.value for claim in claims] == pytest.approx(
        [
            # The single point against: uniform, centre, Chen et al., theirs of 50 channels (and
            # two), its own of 50, before the training also the uniform map, and its own.
            *(50, 20, 30, 7, 5, 10, 40),
            *(60, 30, 40, 12, 10, 15, 45),  # and the mean proxy
            *(20, 10),  # 50 channels for Chen et al., and the mean proxy for the single point
            *(3, -10),  # the accuracy against Chen et al.'s (and five), and the least of all
            *(-7, -5),
        ]
    )
    scenes = claims_of_scenes("birds", {"trained": trained})
    assert [claim.value for claim in scenes] == pytest.approx([50])


def test_boxes_are_scaled_along_each_side(tmp_path):
    from embedding_runs import Images

    Image.new("RGB", (40, 10)).save(tmp_path / "0.png")
    images = Images([str(tmp_path / "0.png")], ["a"], [np.array([[8, 2, 20, 5]])])
    assert images.boxes(20)[0].tolist() == [[4, 4, 10, 10]]


def test_images_that_are_explained_are_of_other_classes(birds):
    from embedding_runs import read

    data = read(str(birds), 0.5)
    assert len(set(data.train.labels)) == len(set(data.explained.labels)) == 2
    assert set(data.train.labels).isdisjoint(data.explained.labels)
    assert set(data.proxies.labels) == set(data.judged.labels) == set(data.explained.labels)


def test_a_network_as_it_is_depends_on_its_weights_alone():
    from embedding_runs import Run

    run = Run(
        **{"init": None, "data": "a/birds", "train_share": 0.5, "arch": "resnet18"},
        **{"weights": None, "criterion": "margin", "embedding_dim": 8, "image_size": 48},
        **{"images_seen": 8, "lr": 0.1, "batch_size": 4, "peer_images": 2, "rounds": 1},
        device="cpu",
    )
    for alike in ({"lr": 0.2}, {"images_seen": 9}, {"device": "cuda"}, {"data": "b/birds"}):
        assert replace(run, **alike).key == run.key
    for other in ({"arch": "resnet50"}, {"weights": "DEFAULT"}, {"image_size": 64}, {"init": 0}):
        assert replace(run, **other).key != run.key
    assert replace(run, init=0, lr=0.2).key != replace(run, init=0).key
