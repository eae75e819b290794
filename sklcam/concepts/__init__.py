"""Concepts: what the channels of a layer stand for, and what the images of a class share.

Masks, boxes or texts give names to channels. A layer's activations are factored into a few
concepts. The maps of a class are clustered, and some clusters may be shortcuts.
:mod:`sklcam.plotting` draws all of them.
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
