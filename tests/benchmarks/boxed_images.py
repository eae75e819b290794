"""Squares on noise with their boxes, for the programs that look for objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {
    **{"blue": (0, 0, 255), "cyan": (0, 255, 255), "green": (0, 255, 0)},
    **{"red": (255, 0, 0), "white": (255, 255, 255), "yellow": (255, 255, 0)},
}


def write_boxed(folder: Path) -> None:
    """Write two images of a square of each colour, and one of two squares, with their boxes."""
    rng = np.random.default_rng(0)
    lines = ["path,label,x1,y1,x2,y2"]
    (folder / "squares").mkdir()
    for i, names in enumerate([*([name] for name in COLOURS for _ in range(2)), ["red", "blue"]]):
        pixels = rng.integers(0, 60, (40, 56, 3), dtype=np.uint8)
        for j, name in enumerate(names):
            x, y = 28 * j + rng.integers(0, 8), rng.integers(0, 16)
            pixels[y : y + 20, x : x + 20] = COLOURS[name]
            lines.append(f"{i}.png,{name},{x},{y},{x + 20},{y + 20}")
        Image.fromarray(pixels).save(folder / "squares" / f"{i}.png")
    (folder / "squares" / "boxes.csv").write_text("\n".join(lines))
