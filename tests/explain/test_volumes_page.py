"""The code of the how-to page on volumes runs as it stands; its network is made smaller."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import pytest
from volumes import TinyVolumeNet

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "volumes.rst"


class Net(TinyVolumeNet):
    def __init__(self, spatial_dims: int = 3, in_channels: int = 1, out_channels: int = 2):
        super().__init__(in_channels, out_channels)


@pytest.mark.filterwarnings("ignore")
def test_the_code_of_the_page_runs(monkeypatch):
    mpl.use("Agg")
    found = re.findall(
        r"^\.\. code-block:: python\n\n((?:   .*\n|\n)+)", PAGE.read_text(), re.MULTILINE
    )
    for name in ("monai", "monai.networks"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    nets = ModuleType("monai.networks.nets")
    nets.DenseNet121 = Net
    monkeypatch.setitem(sys.modules, "monai.networks.nets", nets)
    assert len(found) == 5
    # A fraction of the voxels: boxes and patches shrink with them.
    code = textwrap.dedent("\n".join(found)).replace("48, 48, 48", "16, 16, 16")
    code = code.replace("patch=24, stride=24", "patch=8, stride=8")
    code = code.replace("[12, 16, 8, 30, 34, 20]", "[4, 5, 3, 10, 11, 7]")
    code = code.replace('["gradcam", "hirescam"])', '["gradcam", "hirescam"], target=0)')
    names: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["explainer"].explain(names["X"]).shape == (4, 16, 16, 16)
    assert names["clf"].explain(names["scans"]).shape == (8, 16, 16, 16)
