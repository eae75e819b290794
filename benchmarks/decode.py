"""What decoding large JPEG files at a fraction of their size saves, and what it changes.

:class:`~sklcam.images.ImageDataset` reads and resizes photographs, exactly and with
``decode="fast"``, in turns. The program prints the ratio of the times, and by how many of 255 grey
levels the pixels differ.

    python benchmarks/decode.py --data DIR
    python benchmarks/decode.py --size 3000 4000

Without a folder of JPEG files, photographs that come with scikit-image are enlarged to ``--size``,
given a sensor's noise, and saved with a quality of 90.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image

from sklcam.images import ImageDataset, Resizing

GRAIN = 4.0  # standard deviation of the noise of a pixel, in grey levels


def enlarged(size: tuple[int, int]) -> list[bytes]:
    """Return photographs of the given height and width, as JPEG files."""
    rng, files = np.random.default_rng(0), []
    for photograph in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()):
        large = Image.fromarray(photograph).resize(size[::-1], Image.Resampling.LANCZOS)
        grain = rng.normal(0, GRAIN, (*size, 1))
        pixels = (np.asarray(large) + grain).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JPEG files")
    parser.add_argument("--size", type=int, nargs=2, default=[3000, 4000])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    if options.data is None:
        X: list[str] | list[bytes] = enlarged(tuple(options.size))
    else:
        X = [str(path) for path in sorted(options.data.rglob("*.jp*g"))]
    pixels: dict[str, torch.Tensor] = {}
    times: dict[str, list[float]] = {"exact": [], "fast": []}
    for _ in range(options.rounds):
        for decode, taken in times.items():
            dataset = ImageDataset(X, image_size=options.image_size, resize=Resizing(decode=decode))
            start = time.process_time()
            read = dataset.__getitems__(range(len(X)))
            taken.append(time.process_time() - start)
            pixels[decode] = torch.stack([image for image, _ in read]).double()
    ratio = np.array(times["exact"]) / np.array(times["fast"])
    difference = (pixels["exact"] - pixels["fast"]).abs()
    middle, *ends = np.median(ratio), ratio.min(), ratio.max()
    print(f"{len(X)} files; exact / fast: {middle:.1f} [{ends[0]:.1f} .. {ends[1]:.1f}]")
    most = np.percentile(difference.numpy(), 99)
    print(
        f"grey levels: {difference.mean():.2f} on average, {most:.1f} for 99 % of the pixels, "
        f"{difference.max():.0f} at most"
    )


if __name__ == "__main__":
    main()
