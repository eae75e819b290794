"""Explainers of networks that write captions or answer questions about images."""

from __future__ import annotations

from sklcam.language.explainers import CaptionExplainer, VQAExplainer
from sklcam.language.network import LanguageNetwork
from sklcam.language.results import WordMaps
from sklcam.language.targets import Caption, Word, Words

__all__ = [
    "Caption",
    "CaptionExplainer",
    "LanguageNetwork",
    "VQAExplainer",
    "Word",
    "WordMaps",
    "Words",
]
