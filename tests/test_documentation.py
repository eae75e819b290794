"""The documentation: its links lead somewhere, its code is the library's, names have examples."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
from functools import reduce
from pathlib import Path

import pytest

import sklcam

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUILT = {"_build", "_templates", "auto_examples", "generated"}
PAGES = sorted(
    page for page in DOCS.rglob("*.rst") if not BUILT.intersection(page.relative_to(DOCS).parts)
)
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + PAGES

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
every_text = pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.relative_to(ROOT)))


# Names


def names_of_modules():
    """Yield each module's name with each of those in its ``__all__``."""
    modules = [module.name for module in pkgutil.iter_modules(sklcam.__path__)]
    public = [f"sklcam.{name}" for name in modules if not name.startswith("_")]
    for module in ["sklcam", *public]:
        for name in getattr(importlib.import_module(module), "__all__", ()):
            yield module, name


def names_of_reference():
    """Yield each module's name with each of those that the reference lists."""
    module = None
    for line in (DOCS / "api.rst").read_text().splitlines():
        if found := re.fullmatch(r"\.\. currentmodule:: (\S+)", line):
            module = found[1]
        elif found := re.fullmatch(r"   (\w+)", line):
            yield module, found[1]


def is_documented(module, name):
    named = getattr(importlib.import_module(module), name)
    return inspect.isclass(named) or inspect.isfunction(named)


PUBLIC = sorted(
    {named for named in [*names_of_modules(), *names_of_reference()] if is_documented(*named)}
)


def shows_something(example):
    """Whether an example runs, and does more than import."""
    imports = all(
        isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(example.source).body
    )
    return not imports and not example.options.get(doctest.SKIP)


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_every_public_name_has_an_example_that_runs(module, name):
    named = getattr(importlib.import_module(module), name)
    own = inspect.cleandoc(vars(named).get("__doc__") or named.__doc__)  # not a base's
    sections = re.split(r"^(\w+)\n-+$", own, flags=re.MULTILINE)
    examples = dict(zip(sections[1::2], sections[2::2], strict=True)).get("Examples", "")
    assert any(map(shows_something, doctest.DocTestParser().get_examples(examples)))


def test_examples_that_are_skipped_do_not_count():
    skipped, run = doctest.DocTestParser().get_examples(
        ">>> load('x')  # doctest: +SKIP\n>>> load(\n...     'x')\n1\n"
    )
    (imported,) = doctest.DocTestParser().get_examples(">>> from sklcam import load\n")
    assert [shows_something(example) for example in (skipped, run, imported)] == [
        False,
        True,
        False,
    ]


def test_every_public_name_is_in_the_reference():
    listed = {
        getattr(importlib.import_module(module), name) for module, name in names_of_reference()
    }
    missing = [
        f"{module}.{name}"
        for module, name in PUBLIC
        if getattr(importlib.import_module(module), name) not in listed
    ]
    assert not missing


# Links


def is_page(target):
    """Whether there is such a page, by its path from the documentation's root without a suffix."""
    if target.parts[0] != "auto_examples":
        return DOCS.joinpath(target).with_suffix(".rst").is_file()
    return target.name == "index" or (ROOT / "examples" / target.name).with_suffix(".py").is_file()


def resolved(page, target):
    """Return where a link of a page leads, from the documentation's root."""
    start = DOCS if target.startswith("/") else page.parent
    return start.joinpath(target.lstrip("/")).resolve().relative_to(DOCS)


@every_page
def test_links_between_pages(page):
    text = page.read_text()
    targets = re.findall(r":doc:`(?:[^`<]*<)?([^`>]+)>?`", text)
    for tree in re.findall(r"^\.\. toctree::\n((?:[ ]+.*\n|\n)+)", text, re.MULTILINE):
        targets += [line.strip() for line in tree.splitlines() if line.strip()[:1].isalpha()]
    missing = [target for target in targets if not is_page(resolved(page, target))]
    assert not missing


@every_page
def test_pictures_are_there_or_drawn_by_the_gallery(page):
    missing = []
    for target in re.findall(r"^\.\. (?:figure|image):: (\S+)", page.read_text(), re.MULTILINE):
        script = re.fullmatch(r"/auto_examples/images/sphx_glr_(plot_\w+)_\d{3}\.png", target)
        if script:
            there = (ROOT / "examples" / f"{script[1]}.py").is_file()
        else:
            there = (DOCS / resolved(page, target)).is_file()
        if not there:
            missing.append(target)
    assert not missing


@every_page
def test_names_that_are_linked_exist(page):
    for link in re.findall(r":(?:class|func|meth|mod|data|attr):`([^`]+)`", page.read_text()):
        name = re.sub(r".*<(.+)>", r"\1", link).lstrip("~")
        if name.split(".")[0] == "sklcam":
            reduce(getattr, name.split(".")[1:], sklcam)


@every_text
def test_files_that_are_named_exist(text):
    content = text.read_text()
    targets = re.findall(r"\b(?:benchmarks|examples|docs)/\w+\.(?:py|rst)\b", content)
    if text.suffix == ".md":
        targets += [
            target
            for target in re.findall(r"\]\(([^)\s]+)\)", content)
            if not re.match(r"https?://|#", target)
        ]
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing


# Code


def blocks(text):
    """Return the blocks of Python in a text."""
    content = text.read_text()
    if text.suffix == ".md":
        return re.findall(r"^```python\n(.*?)^```", content, re.MULTILINE | re.DOTALL)
    found = re.findall(
        r"^\.\. code-block:: python\n\n((?:   .*\n|\n)+)", content + "\n", re.MULTILINE
    )
    return [textwrap.dedent(block) for block in found]


@every_text
def test_blocks_of_code_parse_and_import_what_there_is(text):
    assert len(blocks(text)) == len(
        re.findall(r"(?m)^```python|code-block:: python", text.read_text())
    )
    for block in blocks(text):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "sklcam":
                module = importlib.import_module(node.module)
                for imported in node.names:
                    assert hasattr(module, imported.name), imported.name


@pytest.mark.slow
def test_getting_started_runs_from_top_to_bottom(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in blocks(DOCS / "getting_started.rst"):
        exec(compile(block, "getting_started.rst", "exec"), names)
    assert names["clf"].score(names["X_test"], names["y_test"]) > 0.9
    written = {"photographs.png", "maps.png", "views.png", "report.html", "photographs.sklcam"}
    assert {path.name for path in tmp_path.iterdir()} == written
