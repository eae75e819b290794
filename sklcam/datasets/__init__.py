"""Data sets of images, with the boxes and masks of their objects.

These are loaders for the data sets that papers on explanations use, each with its own split. They
read a local folder; torchvision can download two of the sets. No image is opened here: the
estimators read the paths in ``data`` lazily, and masks are read on access.

Boxes are ``(x1, y1, x2, y2)`` in pixels of the image itself: edges of pixels, counted from 0, so a
box from 0 to the width is as wide as the image. Each loader converts the coordinates of its source.
Masks have the image's size. ``evaluate(..., boxes=..., masks=...)`` brings the maps into this
frame, however the network's input was resized. The estimators turn images upright by their EXIF
orientation, so the boxes of your own photographs must be those of the upright image.
"""

from __future__ import annotations

from sklcam.datasets._bunch import LazyMask
from sklcam.datasets.caltech101 import load_caltech101
from sklcam.datasets.cub200 import load_cub200
from sklcam.datasets.digits import load_digits
from sklcam.datasets.folders import find_images, load_boxes_csv, load_class_folders
from sklcam.datasets.imagenet import load_imagenet
from sklcam.datasets.voc import load_voc

__all__ = [
    "LazyMask",
    "find_images",
    "load_boxes_csv",
    "load_caltech101",
    "load_class_folders",
    "load_cub200",
    "load_digits",
    "load_imagenet",
    "load_voc",
]
