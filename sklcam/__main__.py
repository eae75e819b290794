"""``python -m sklcam``: the command ``sklcam``, for when its script is not on the path."""

from __future__ import annotations

import sys

from sklcam.command_line import main

if __name__ == "__main__":
    sys.exit(main())
