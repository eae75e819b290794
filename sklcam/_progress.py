"""Progress bars: widgets in a notebook that supports them, and lines of text anywhere else."""

from __future__ import annotations

import warnings

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # Without ipywidgets, tqdm warns in notebooks that its bars are text. Text is fine here.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm as tqdm
