"""Concepts: what the channels of a layer stand for, and what the images of a class share.

Channels get names by masks, boxes or texts; a layer's activations fall into a few factors; and maps
of a class into clusters, of which some may be shortcuts. Drawn by :mod:`sklcam.plotting`.
"""

from __future__ import annotations

from sklcam.concepts.factors import ConceptMaps
from sklcam.concepts.namer import ConceptNamer
from sklcam.concepts.reasons import Reasons
from sklcam.concepts.shortcuts import Shortcut, Shortcuts, find_shortcuts
from sklcam.concepts.text_namer import TextConceptNamer

__all__ = [
    "ConceptMaps",
    "ConceptNamer",
    "Reasons",
    "Shortcut",
    "Shortcuts",
    "TextConceptNamer",
    "find_shortcuts",
]
