"""Progress bars: widgets in a notebook that draws them, and lines of text anywhere else."""

from __future__ import annotations

import warnings

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # Without ipywidgets, tqdm warns in notebooks that its bars are of text. That is what we want.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm as tqdm
