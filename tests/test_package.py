"""The top level: what it exports, and what importing it does not import."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib.metadata import version

import pytest

import sklcam

HEAVY = ("torch", "torchvision", "sklearn", "skorch", "scipy", "matplotlib", "PIL")
OPTIONAL = ("matplotlib", "pytorch_metric_learning", "accelerate", "dask", "captum", "jinja2")


def imported_by(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    assert not imported_by("import sklcam").intersection(HEAVY)


def test_no_name_imports_what_is_optional():
    assert not imported_by("from sklcam import *").intersection(OPTIONAL)


@pytest.mark.parametrize("name", sklcam.__all__)
def test_every_name_is_there_and_is_listed(name):
    found = getattr(sklcam, name)
    assert found.__name__ == name and found.__module__.startswith("sklcam.")
    assert getattr(sklcam, name) is found
    assert name in dir(sklcam)


def test_every_module_is_an_attribute():
    names = {module.name for module in pkgutil.iter_modules(sklcam.__path__)}
    modules = {name for name in names if not name.startswith("_")}
    assert modules == sklcam._PACKAGES
    code = "import sklcam; print(sklcam.metrics.ssim_consistency.__name__, sklcam.cam.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["ssim_consistency", "sklcam.cam"]


def test_other_names_are_errors():
    with pytest.raises(AttributeError, match="no attribute 'CamExplainer'"):
        _ = sklcam.CamExplainer
    with pytest.raises(ImportError):
        exec("from sklcam import CamExplainer")


def test_show_versions(capsys):
    sklcam.show_versions()
    shown = capsys.readouterr().out
    for package in ("sklcam", "torch", "scikit-learn", "skorch"):
        assert f"{package}: {version(package)}\n" in shown
    assert f"python: {sys.version.split()[0]}" in shown
