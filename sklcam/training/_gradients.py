"""Gradients that several processes average during the backward pass.

In a step with several backward passes, a gradient is complete once the last of them has passed its
parameter; then it may be sent. So buckets of gradients are sent during the last backward pass, in
an order that all processes share; the rest are sent at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

_BUCKET_BYTES = 2**24


class Work(Protocol):
    """An operation in progress."""

    def wait(self) -> object: ...


class Together(Protocol):
    """The processes whose gradients are averaged; see ``Processes``."""

    count: int

    def sum_soon(self, flat: Tensor) -> Work: ...

    def from_main(self, value: list[int]) -> list[int]: ...


class AveragedGradients:
    """The gradients of steps, averaged over processes in buckets.

    The first step shows in which order the last backward pass reaches the parameters; all processes
    use the main process's order. Parameters that it does not reach are in the last buckets.

    Parameters
    ----------
    processes : Together
    """

    def __init__(self, processes: Together):
        self._processes = processes
        self._parameters: list[nn.Parameter] = []
        self._buckets: list[list[int]] | None = None
        self._is_last: Callable[[], bool] = bool
        self._arrived: dict[int, None] = {}
        self._sent: list[tuple[Tensor, Work]] = []

    @contextmanager
    def during(
        self, parameters: Iterable[nn.Parameter], is_last: Callable[[], bool]
    ) -> Iterator[None]:
        """Send gradients during a step.

        Parameters
        ----------
        parameters : iterable of Parameter
            Those that are trained, the same in all processes.
        is_last : callable
            Whether the present backward pass is the last of the step.
        """
        given = list(parameters)
        if [*map(id, given)] != [*map(id, self._parameters)]:
            self._parameters, self._buckets = given, None
        self._is_last, self._arrived, self._sent = is_last, {}, []
        with ExitStack() as stack:
            for i, parameter in enumerate(given):
                hook = parameter.register_post_accumulate_grad_hook(partial(self._arrive, i))
                stack.callback(hook.remove)
            yield

    def _arrive(self, i: int, parameter: Tensor) -> None:
        if not self._is_last():
            return
        if i in self._arrived:
            raise RuntimeError(
                "A backward pass reaches a parameter twice, so it is not known when its gradient "
                "is complete. Make checkpoints with use_reentrant=False."
            )
        self._arrived[i] = None
        self._send(all)

    def _send(self, is_ready: Callable[[list[bool]], bool]) -> None:
        """Send the next buckets, as long as they are ready."""
        for bucket in (self._buckets or [])[len(self._sent) :]:
            if not is_ready([i in self._arrived for i in bucket]):
                return
            flat = torch.cat([_gradient(self._parameters[i]).reshape(-1) for i in bucket])
            self._sent.append((flat, self._processes.sum_soon(flat)))

    @property
    def n_sent(self) -> int:
        """How many buckets have been sent."""
        return len(self._sent)

    @torch.no_grad()
    def finish(self) -> None:
        """Send the rest, and replace all gradients by their averages."""
        if self._buckets is None:
            order = self._processes.from_main([*self._arrived])
            late = [i for i in reversed(range(len(self._parameters))) if i not in {*order}]
            self._buckets = [*self._in_buckets(order), *self._in_buckets(late)]
        self._send(lambda arrived: True)
        for bucket, (flat, work) in zip(self._buckets, self._sent, strict=True):
            work.wait()
            flat /= self._processes.count
            gradients = [_gradient(self._parameters[i]) for i in bucket]
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, values in zip(gradients, parts, strict=True):
                gradient.copy_(values.view_as(gradient))
        self._sent = []

    def _in_buckets(self, order: Sequence[int]) -> Iterator[list[int]]:
        """Yield parameters of one type together, enough to be worth sending."""
        waiting: dict[torch.dtype, list[int]] = {}
        for i in order:
            dtype = self._parameters[i].dtype
            bucket = waiting.setdefault(dtype, [])
            bucket.append(i)
            if sum(self._parameters[each].nbytes for each in bucket) >= _BUCKET_BYTES:
                yield waiting.pop(dtype)
        yield from waiting.values()


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
