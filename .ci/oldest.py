"""Print the oldest versions of what sklcam declares, one ``name==version`` a line, for pip's -c.

They are read from pyproject.toml, the dependencies and the extras for users, so that what is
declared is what is tested.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

FOR_DEVELOPERS = {"docs", "examples", "test"}  # what they test with need not be old

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
floors = [
    *project["dependencies"],
    *(
        floor
        for extra, floors in project["optional-dependencies"].items()
        if extra not in FOR_DEVELOPERS
        for floor in floors
    ),
]
for floor in floors:
    # A constraint names no extras, and one that is not a plain floor should not pass unseen.
    name, version = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", floor).groups()
    print(f"{name}=={version}")
