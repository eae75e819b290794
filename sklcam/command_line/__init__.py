"""The command ``sklcam``: explain, evaluate and report on folders of images, without Python.

A thin layer over the library, for people who are given a model and did not train it. Nothing
heavy is imported before the arguments are parsed, so help appears at once.
"""

from __future__ import annotations

from sklcam.command_line.entry import main

__all__ = ["main"]
