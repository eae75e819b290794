"""What all tests share: one thread, as the networks are tiny and the numbers should not depend on
how a machine splits its sums."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
