"""What the command sklcam refuses; errors in usage are argparse's, and end with the code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from refusals import Row, explainer, rows_of, written

import sklcam
from sklcam.command_line import main
from sklcam.networks import build_model


def called(folder: Path, command: str = "explain", *options: str, **changes: str) -> None:
    """Run a command on a folder of one image, by a model that there is no need to load."""
    images = folder / "photos" / "cat"
    images.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(images / "1.png")
    named = {"model": "resnet18", "out": str(folder / "out"), **changes}
    pairs = [each for name, value in named.items() for each in (f"--{name}", value)]
    place = str(folder / "photos") if command != "info" else pairs.pop(1)
    main([command, place, *pairs * (command != "info"), *options, "--traceback"])


def saved(folder: Path) -> str:
    sklcam.save(explainer(), folder / "a.sklcam")
    return str(folder / "a.sklcam")


def with_a_broken_image(folder: Path, *options: str) -> None:
    images = folder / "photos" / "cat"
    images.mkdir(parents=True)
    (images / "2.png").write_bytes(b"no image")
    called(folder, "explain", *options, model=saved_network(folder))


def saved_network(folder: Path) -> str:
    options = {"image_size": 64, "mean": 0.5, "std": 0.25}
    fitted = sklcam.CAMExplainer(build_model("squeezenet1_1", n_classes=2), **options).fit()
    sklcam.save(fitted, folder / "b.sklcam")
    return str(folder / "b.sklcam")


def with_page(folder: Path) -> str:
    return str(written(folder, b"mine", "page.html"))


FILES: dict[str, list[Row]] = {
    "main": [
        ("no model", lambda f: called(f, model="no.sklcam"), "No such file", FileNotFoundError),
        ("no network", lambda f: called(f, model="resnet81"), "Did you mean: resnet18"),
        ("weights", lambda f: called(f, model=str(written(f, b"", "a.pt"))), "--weights .*a.pt"),
        ("objects", lambda f: called(f, model=saved(f)), "The file needs SmallNet"),
        (
            "no image",
            lambda f: main(["explain", str(f / "a.jpg"), "--model=a", "--out=b", "--traceback"]),
            "There is no folder or image '.*a.jpg'. Give",
        ),
        ("no info", lambda f: main(["info", str(f / "no"), "--traceback"]), "There is no file"),
        ("device", lambda f: called(f, device="gpu"), "--device must be auto, .* got 'gpu'"),
        ("cuda:99", lambda f: called(f, device="cuda:99"), "--device cuda:99 does not exist"),
        ("method", lambda f: called(f, method="gradcan"), "Did you mean: gradcam"),
        ("no side", lambda f: called(f, longest="0"), "--longest must be an int >= 1; got 0"),
        ("classes", lambda f: called(f, classes=str(written(f, b"a\n\nb"))), "one class name in e"),
        ("twice", lambda f: called(f, classes=str(written(f, b"a\na"))), "each of them once"),
        ("a file", lambda f: called(f, out=str(written(f, b""))), "file is a file. Give a folder"),
        ("not empty", lambda f: called(f, out=str(f)), "exists and is not empty. .* --overwrite"),
        ("within", lambda f: called(f, out=str(f / "photos/o")), "would explain the overlays"),
        ("a page", lambda f: called(f, "report", out=with_page(f)), "already exists. .*--overw"),
        ("a folder", lambda f: called(f, "evaluate", out=str(f)), "is a folder. Give the name of"),
        ("nowhere", lambda f: called(f, "evaluate", out=str(f / "a/b")), "folder that does not ex"),
        ("broken", with_a_broken_image, "1 of 2 images cannot .*2.png .* give --skip-unreadable"),
        ("some", lambda f: called(f, "evaluate", method="gradcam,x"), "no method 'x'"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("call", "match", "error"), rows_of(FILES))
def test_refusals_of_the_command(call, match, error, tmp_path):
    with pytest.raises(error, match=match):
        call(tmp_path)


def test_nothing_is_made_where_something_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Did you mean"):
        called(tmp_path, method="gradcan")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
