"""Reentrant checkpoints: parts of a network that keep no graph to take gradients of."""

from __future__ import annotations

from torch import Tensor

REENTRANT = (
    "parts of the network run by torch.utils.checkpoint with use_reentrant=True, which keeps no "
    "graph of them to take gradients of. Use use_reentrant=False, or checkpoint only if "
    "self.training and turn it off for training on maps."
)


class ReentrantCheckpoint(ValueError):
    """Behind a layer, parts run by reentrant checkpoints, which gradients of it cannot pass."""


def is_reentrant(output: Tensor) -> bool:
    """Whether an output's graph has reentrant checkpoints in it.

    Parameters
    ----------
    output : Tensor

    Returns
    -------
    bool
    """
    seen, ahead = set(), [output.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        ahead += [before for before, _ in node.next_functions]
    return False
