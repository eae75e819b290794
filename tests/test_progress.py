"""Progress bars in a notebook that cannot draw them: text, and no warning."""

from __future__ import annotations

import subprocess
import sys

# A notebook, as tqdm knows one, without ipywidgets.
NOTEBOOK = """
import sys, types
shell = type("ZMQInteractiveShell", (), {})
sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")
sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython"].get_ipython = shell
sys.modules["ipywidgets"] = None
from sklcam._progress import tqdm
with tqdm(total=3, disable=False) as bar:
    bar.update(2)
"""


def test_without_widgets_bars_are_text_and_nothing_warns():
    found = subprocess.run(
        [sys.executable, "-W", "always", "-c", NOTEBOOK], capture_output=True, text=True
    )
    assert found.returncode == 0 and "2/3" in found.stderr, found.stderr
    assert "Warning" not in found.stderr
