"""Processes for tests, which share nothing with this one but the disk."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any


def in_a_process(function: Callable[..., None], *args: Any) -> BaseProcess:
    """Start a function of a test's module in a process that no network has run in.

    Forked from this one it could hang or fail, as threads of autograd's do not come along: which
    tests ran before would decide. The server that it is forked from has imported torch once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sklcam.explain", "sklcam.metrics"])
    process = context.Process(target=function, args=args)
    process.start()
    return process
