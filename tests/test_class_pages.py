"""Pages of classes in the reference: what users call comes first, and nothing is lost."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import sklcam

PATH = Path(__file__).parents[1] / "docs" / "_extensions" / "class_pages.py"
SPEC = importlib.util.spec_from_file_location("class_pages", PATH)
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)

NETS = ("ConsistentCAMClassifier", "CAMExplainer", "EmbeddingCAMExplainer", "EmbeddingNet")
LANGUAGE = ("CaptionExplainer", "VQAExplainer")


def test_what_users_call_comes_first_and_extensions_follow():
    first, others = pages.GroupedMembers()("sklcam", "ConsistentCAMClassifier")
    names = [name for _, name in first]
    assert names[:3] == ["fit", "partial_fit", "predict"] and "explain" in names
    assert ("autoproperty", "history_frame_") in first and ("automethod", "open") in others
    assert not set(first) & set(others)
    shown = {name for _, name in first + others}
    # skorch's own, and an override without words of its own
    assert not shown & {"save_params", "train_step", "set_score_request", "__init__"}
    assert pages.GroupedMembers()("sklcam", "CAMDisplay") is None


def test_all_that_users_call_is_somewhere():
    called = set()
    for name in NETS + LANGUAGE:
        called |= {each for _, each in pages.GroupedMembers()("sklcam", name)[0]}
    assert called == set(pages.USERS_CALL)
    assert all(hasattr(sklcam, name) for name in NETS + LANGUAGE)


def test_sphinx_can_cache_it():
    assert pages.GroupedMembers() == pages.GroupedMembers()
