"""What all tests share: one thread, as the networks are tiny.

What they claim holds for any number of threads, among which sums are split: SKLCAM_TEST_THREADS=2
runs them with two.
"""

from __future__ import annotations

import os

import torch

torch.set_num_threads(int(os.environ.get("SKLCAM_TEST_THREADS", "1")))
