"""Label maps from explanations: segmentation that needs only labels of whole images.

A label map says what each pixel is: 0 is the background, c + 1 the class c, and a label to ignore
means unknown. To train a network on label maps, use a library for segmentation.
"""

from __future__ import annotations

from sklcam.segmentation.cuts import grab_cut
from sklcam.segmentation.segmenter import CAMSegmenter

__all__ = ["CAMSegmenter", "grab_cut"]
