"""Find the user's line that called the library, so that warnings point to it."""

from __future__ import annotations

import contextlib
import os
import sys

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
# Frames of these can lie between two of the library's: generators, and skorch's training loop.
_BETWEEN = contextlib.__file__
_LOOP = os.sep + "skorch" + os.sep


def level_of_user() -> int:
    """Return the ``stacklevel`` with which a warning points to the line that called the library.

    Call it in the arguments of ``warnings.warn``. Python 3.12 has ``skip_file_prefixes`` for this.

    Examples
    --------
    >>> from sklcam._callers import level_of_user
    >>> level_of_user()  # level 1 is the line that warns
    1
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(_OURS)
        or frame.f_code.co_filename == _BETWEEN
        or _LOOP in frame.f_code.co_filename
    ):
        frame, level = frame.f_back, level + 1
    return level
