"""Installed versions, for files and for bug reports."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

REQUIRED = ("sklcam", "torch", "torchvision", "skorch", "scikit-learn", "numpy")
_OTHERS = ("scipy", "joblib", "pillow", "safetensors", "tqdm")
_OPTIONAL = (
    *("matplotlib", "pytorch-metric-learning", "accelerate", "dask", "timm", "transformers"),
    *("onnx", "onnxruntime", "onnxscript"),
)


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def show_versions() -> None:
    """Print the versions of sklcam, Python and the packages that sklcam uses, for a bug report.

    Examples
    --------
    >>> import sklcam
    >>> sklcam.show_versions()
    System:
        python: ...
      platform: ...
    <BLANKLINE>
    Packages:
        sklcam: ...
         torch: ...
    ...
    """
    import torch

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "not available"
    system = {
        "python": sys.version.replace("\n", " "),
        "platform": platform.platform(),
        "device": f"CUDA {torch.version.cuda}, {cuda}",
        "threads": str(torch.get_num_threads()),
    }
    names = (*REQUIRED, *_OTHERS, *_OPTIONAL)
    found = installed_versions(names)
    packages = {name: found.get(name, "not installed") for name in names}
    print("System:", *_aligned(system), "", "Packages:", *_aligned(packages), sep="\n")


def _aligned(values: dict[str, str]) -> list[str]:
    width = max(map(len, values)) + 2
    return [f"{name:>{width}}: {value}" for name, value in values.items()]
