"""Run a command: from its arguments to its output, its errors and its exit code."""

from __future__ import annotations

import json
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import import_module
from typing import Any, TextIO

from sklcam.command_line.arguments import parser
from sklcam.command_line.results import Result

SUCCESS, FAILURE, INTERRUPTED = 0, 1, 130
_TRACEBACK = "SKLCAM_TRACEBACK"
# Their messages say what is wrong and what to do. Any other error is shown with its type.
_SPEAKING = (ValueError, OSError, ImportError, TypeError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``sklcam``.

    Parameters
    ----------
    argv : sequence of str or None, default=None
        The arguments, such as ``["info", "birds.sklcam"]``; None takes those of the process.

    Returns
    -------
    int
        The exit code: 0 if all went well, 1 after an error, which is printed in one line on
        stderr, 2 if the arguments are wrong, and 130 after an interruption.

    Raises
    ------
    ValueError, OSError, Exception
        Any error, if ``--traceback`` is given or SKLCAM_TRACEBACK is set in the environment.

    Examples
    --------
    >>> from sklcam.command_line import main
    >>> main(["--version"])
    sklcam ...
    0
    """
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as ended:  # of argparse, after help or an error in usage
        return ended.code if isinstance(ended.code, int) else FAILURE
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        is_resumable = (
            arguments.command == "explain" or getattr(arguments, "store", None) is not None
        )
        hint = "; the same command continues" if is_resumable else ""
        print(f"sklcam: interrupted{hint}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except Exception as error:  # users see any error as one line
        if arguments.traceback or os.environ.get(_TRACEBACK):
            raise
        print(f"sklcam: error: {_message_of(error)}", file=sys.stderr)
        return FAILURE


def _run(arguments: Namespace) -> int:
    # Each command is a module that imports torch, so it is imported only when it runs.
    run = import_module(f"sklcam.command_line.{arguments.module}").run
    with _warnings_in_a_line(), redirect_stdout(sys.stderr):  # other libraries may print
        result: Result = run(arguments)
    _print(result, as_json=arguments.json)
    return SUCCESS


def _print(result: Result, *, as_json: bool) -> None:
    text = json.dumps(result.values, indent=1, allow_nan=False) if as_json else result.text
    # Names of files and classes may hold characters that the terminal cannot show.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def _message_of(error: Exception) -> str:
    text = _one_line(str(error)) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, _SPEAKING):
        return text
    return f"{type(error).__name__}: {text} (--traceback shows where)"


def _one_line(text: str) -> str:
    return " ".join(text.split())


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Print warnings in one line, as errors are, without the line of code that raised them."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> Any:
        print(f"sklcam: warning: {_one_line(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
