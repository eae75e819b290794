"""The command ``sklcam``: explain, evaluate and report on folders of images, without Python.

A thin layer over the library, for people who get a file and did not train it. Nothing heavy is
imported before the arguments have been read, so that help comes at once.
"""

from __future__ import annotations

from sklcam.command_line.entry import main

__all__ = ["main"]
