"""Label maps from maps: segmentation that takes only labels of whole images.

A label map says what each pixel is: 0 the background, c + 1 the class c, and a label to ignore
if that is unknown. Training a network on them is the business of libraries for segmentation.
"""

from __future__ import annotations

from sklcam.segmentation.cuts import grab_cut
from sklcam.segmentation.segmenter import CAMSegmenter

__all__ = ["CAMSegmenter", "grab_cut"]
