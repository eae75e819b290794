"""The arguments of the command. Nothing slow is imported here, so help appears at once."""

from __future__ import annotations

import argparse
from typing import Any

import sklcam

_JSON = "print the result as JSON"
_TRACEBACK = "show where an error comes from"
_MODELS = "a .sklcam file; timm/NAME, torchvision/NAME, ..."


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help that keeps line breaks as they are written; all lines fit 80 columns."""

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog, **{"max_help_position": 21, **options})


class _Once(argparse.Action):
    """Keep a model; an error if a second one follows, which would silently replace it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(
                f"{option_string} takes one model here; evaluate and report compare several"
            )
        setattr(namespace, self.dest, values)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="sklcam",
        usage="sklcam [--version] COMMAND ...",
        description="Show where a network looked in photographs, and measure its maps.",
        epilog=(
            "examples:\n"
            "  sklcam explain photos --model birds.sklcam --out maps\n"
            "  sklcam evaluate test --model timm/resnet50 --metrics accuracy,adcc\n"
            "  sklcam report test --model birds.sklcam -o report.html\n\n"
            "sklcam COMMAND --help lists the options of a command."
        ),
        formatter_class=_Help,
    )
    top.add_argument("--version", action="version", version=f"sklcam {sklcam.__version__}")
    commands = top.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="command"
    )
    _add_explain(commands)
    _add_evaluate(commands)
    _add_report(commands)
    _add_info(commands)
    return top


def _add_explain(commands: Any) -> None:
    command = _command(
        commands,
        "explain",
        "write overlays, arrays, and a table of predictions",
        "DIR --model MODEL --out MAPS",
    )
    _add_images_and_model(command, "a folder of images, at any depth; or one image")
    written = command.add_argument_group("maps and files")
    _add_method(written)
    written.add_argument(
        "--out", required=True, metavar="MAPS", help="folder to write to; the same call resumes"
    )
    written.add_argument("--overwrite", action="store_true", help="replace files in MAPS")
    written.add_argument(
        "--format",
        metavar="KIND",
        choices=("png", "jpeg"),
        default="png",
        help="format of overlays: png or jpeg; default png",
    )
    written.add_argument(
        "--longest", type=int, default=1024, metavar="N", help="longer side of overlays, in pixels"
    )
    written.add_argument(
        "--frame",
        metavar="WHOSE",
        choices=("input", "image"),
        default="input",
        help="size of arrays: that of the input, or of the image",
    )
    written.add_argument("--no-overlays", action="store_true", help="write no overlays")
    written.add_argument("--no-arrays", action="store_true", help="write no arrays (.npy)")
    _add_running(command)


def _add_evaluate(commands: Any) -> None:
    command = _command(
        commands, "evaluate", "measure the maps, and print a table", "DIR --model MODEL"
    )
    folder = "a folder of images; folders in it are their classes"
    _add_images_and_model(command, folder, several=True)
    measured = command.add_argument_group("measurements")
    _add_measured(measured)
    measured.add_argument("-o", "--out", metavar="F", help="CSV file for the values of each image")
    measured.add_argument("--overwrite", action="store_true", help="replace that file if it exists")
    measured.add_argument(
        "--store", metavar="F", help="folder to resume from after an interruption"
    )
    _add_running(command, jobs=True)


def _add_report(commands: Any) -> None:
    command = _command(
        commands,
        "report",
        "write a page of HTML with numbers, images and maps",
        "DIR --model MODEL -o report.html",
    )
    folder = "a folder of images; folders in it are their classes"
    _add_images_and_model(command, folder, several=True)
    shown = command.add_argument_group("measurements and page")
    _add_measured(shown)
    shown.add_argument("-o", "--out", required=True, metavar="F", help="the page to write")
    shown.add_argument("--overwrite", action="store_true", help="replace that file if it exists")
    shown.add_argument("--title", metavar="TEXT", help="title of the page")
    shown.add_argument("--images", type=int, metavar="N", help="how many to show; default all")
    _add_running(command, jobs=True)


def _add_info(commands: Any) -> None:
    command = _command(commands, "info", "say what is in a .sklcam file", "FILE")
    command.add_argument("file", metavar="FILE", help="a file of sklcam.save; no code in it runs")
    command.add_argument("--json", action="store_true", help=_JSON)
    command.add_argument("--traceback", action="store_true", help=_TRACEBACK)
    command.set_defaults(module="describing")


def _command(commands: Any, name: str, does: str, takes: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        prog=f"sklcam {name}",
        usage=f"sklcam {name} {takes} [options]",
        help=does,
        description=f"{does[0].upper()}{does[1:]}.",
        formatter_class=_Help,
        allow_abbrev=False,  # an option that is added later would change what a script means
    )
    command.set_defaults(module={"explain": "explaining"}.get(name, "measuring"))
    return command


def _add_images_and_model(
    command: argparse.ArgumentParser, folder: str, *, several: bool = False
) -> None:
    command.add_argument("dir", metavar="DIR", help=folder)
    model = command.add_argument_group("model")
    how: dict[str, Any] = {
        "action": "append",
        "help": "a .sklcam file, timm/NAME, ...; repeat to compare",
    }
    one: dict[str, Any] = {"action": _Once, "help": _MODELS}
    model.add_argument("--model", required=True, **(how if several else one))
    model.add_argument(
        "--weights", metavar="F", help="file of a named network's weights; default: published"
    )
    model.add_argument("--classes", metavar="FILE", help="text file, one class name per line")
    model.add_argument("--layer", metavar="L", help="target layer; default: the usual one")
    model.add_argument(
        "--image-size", type=_size, metavar="N", help="side of the input, or HEIGHTxWIDTH"
    )
    model.add_argument(
        "--resize",
        metavar="HOW",
        choices=("stretch", "center_crop"),
        help="how to get that size: stretch or center_crop",
    )
    for name in ("mean", "std"):
        model.add_argument(
            f"--{name}", type=_numbers, metavar="R,G,B", help=f"{name} to normalise by, in [0, 1]"
        )


def _add_method(group: Any, *, several: bool = False) -> None:
    names = "M[,M]" if several else "M"
    group.add_argument("--method", metavar=names, help="such as layercam; default gradcam")
    group.add_argument("--target", metavar="T", help="class by name or number; true: the folder's")


def _add_measured(group: Any) -> None:
    group.add_argument(
        "--metrics", metavar="M[,M]", help="default: adcc,iauc,dauc,consistency and accuracy"
    )
    _add_method(group, several=True)
    group.add_argument("--no-labels", action="store_true", help="folders in DIR are not classes")


def _add_running(command: argparse.ArgumentParser, *, jobs: bool = False) -> None:
    running = command.add_argument_group("running")
    running.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1; default auto")
    running.add_argument(
        "--precision",
        metavar="TYPE",
        choices=("fp32", "bf16", "fp16"),
        help="precision: fp32, bf16 or fp16",
    )
    running.add_argument("--batch-size", type=int, metavar="N", help="images at a time")
    running.add_argument("--workers", type=int, metavar="N", help="processes that read images")
    if jobs:
        running.add_argument(
            "--jobs", type=int, metavar="N", help="processes that share the images"
        )
    running.add_argument(
        "--skip-unreadable", action="store_true", help="leave out broken images, and name them"
    )
    running.add_argument("--quiet", action="store_true", help="no progress bars")
    running.add_argument("--json", action="store_true", help=_JSON)
    running.add_argument("--traceback", action="store_true", help=_TRACEBACK)


def _size(text: str) -> int | tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"must be a size, such as 224 or 224x320; got {text!r}")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _numbers(text: str) -> float | list[float]:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number, or one per channel, such as 0.485,0.456,0.406; got {text!r}"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers
