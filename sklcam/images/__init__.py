"""Images: what X may be, and how it becomes batches; forms, frames, views, labels and rows.

Nothing here depends on networks.
"""

from __future__ import annotations

from sklcam.images.dataset import ImageDataset, check_images, n_images
from sklcam.images.frames import Resizing, map_to_frame
from sklcam.images.labels import dataset_labels
from sklcam.images.normalization import default_statistics, normalize
from sklcam.images.views import ViewSampler
from sklcam.images.warps import Warp

__all__ = [
    "ImageDataset",
    "Resizing",
    "ViewSampler",
    "Warp",
    "check_images",
    "dataset_labels",
    "default_statistics",
    "map_to_frame",
    "n_images",
    "normalize",
]
