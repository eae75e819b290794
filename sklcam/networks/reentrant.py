"""Reentrant checkpoints: parts of a network that keep no graph for gradients."""

from __future__ import annotations

from torch import Tensor

REENTRANT = (
    "parts of the network run in torch.utils.checkpoint with use_reentrant=True, which keeps no "
    "graph for gradients. Use use_reentrant=False, or checkpoint only if self.training and turn "
    "it off for training on maps."
)


class ReentrantCheckpoint(ValueError):
    """Raised if parts behind a layer run in reentrant checkpoints, which stop its gradients."""


def is_reentrant(output: Tensor) -> bool:
    """Whether an output's graph contains reentrant checkpoints.

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
