"""The program that counts the names of a network's channels, on a handful of images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.mark.filterwarnings("ignore:.*has random weights")
def test_names_are_counted_and_judged(tmp_path, capsys):
    import concepts

    rng = np.random.default_rng(0)
    rows = ["path,label,x1,y1,x2,y2"]
    colours = {"apple": (60, 220, 40), "banana": (240, 220, 30), "orange": (250, 130, 20)}
    for i in range(12):
        label = list(colours)[i % 3]
        pixels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
        pixels[16:48, 16:48] = colours[label]
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{label},16,16,48,48")
    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    concepts.main(["--fruits", str(tmp_path), "--k", "7"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("boxes of 6 images; bins move a score by at most 0.0")
    assert printed[2].strip().split(" ", 1)[1].startswith("of 1280 channels have a name: apple ")
    counts = [int(line.split("of the top 7")[1].split()[0]) for line in printed[3:9]]
    assert all(0 <= count <= 7 for count in counts) and sum(counts) > 0
    own, permuted = (float(line.split()[-1]) for line in printed[9:11])
    assert 0.5 < own > permuted
    assert printed[11] == "boxes with labels permuted"
