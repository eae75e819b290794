"""The command sklcam: what it writes is what the library says, and what it prints can be read."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from importlib import import_module
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

import sklcam
from sklcam import CAMExplainer, ConsistentCAMClassifier, EmbeddingCAMExplainer, command_line
from sklcam.command_line import arguments, explaining, measuring
from sklcam.command_line.results import plain
from sklcam.images import Resizing
from sklcam.metrics import Evaluation, compare, evaluate
from sklcam.networks import build_model
from sklcam.plotting.pages import overlay

HEAVY = ("torch", "torchvision", "sklearn", "skorch", "scipy", "matplotlib", "PIL", "numpy", "tqdm")
COMMANDS = ("explain", "evaluate", "report", "info")
SIZES = {
    "cat/1.png": (40, 30),
    "cat/1.jpg": (30, 40),
    "cat/deep/1.png": (64, 64),
    "dog/a.png": (20, 70),
}
PREPARED = {"image_size": 64, "resize": "stretch", "mean": 0.5, "std": 0.25}
SAID = ("--image-size=64", "--resize=stretch", "--mean=0.5", "--std=0.25")


def network():
    """A network that always answers "dog", as nothing speaks for "cat", whose maps are blank."""
    torch.manual_seed(0)
    made = build_model("squeezenet1_1", n_classes=2).eval()
    with torch.no_grad():
        weights = made.classifier[1].weight
        weights.copy_(weights.abs() * torch.tensor([-1.0, 1.0])[:, None, None, None])
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a model, its weights, and images in the folders of two classes."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        path = folder / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    torch.save(network().state_dict(), folder / "weights.pt")
    (folder / "names.txt").write_text("cat\ndog\n", encoding="utf-8")
    explainer = CAMExplainer(network(), classes=["cat", "dog"], **PREPARED).fit()
    sklcam.save(explainer, folder / "pets.sklcam")
    return folder


@pytest.fixture
def at(files, monkeypatch):
    monkeypatch.chdir(files)
    return files


@pytest.fixture
def run(at, capsys):
    """Run the command on the images by the model, and return its code, and what it printed."""

    def run_command(command, *options, place="pets", model="pets.sklcam"):
        capsys.readouterr()
        code = command_line.main([command, place, "--model", model, "--quiet", *map(str, options)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run_command


@pytest.fixture
def loaded(at):
    return sklcam.load("pets.sklcam").set_params(verbose=0)


def rows_in(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Help, versions and errors in usage


@pytest.mark.parametrize("columns", ["80", "200"])
@pytest.mark.parametrize(("command", "most"), [((), 24), *(((name,), 40) for name in COMMANDS)])
def test_help_fits_a_screen(command, most, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert command_line.main([*command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= most and max(map(len, lines)) <= 80
    assert lines[0].startswith(f"usage: {' '.join(['sklcam', *command])}")


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from sklcam.command_line import main\n"
        f"for command in {COMMANDS}: main([command, '--help'])\n"
        "main(['--version']); main(['--help']); print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"sklcam {sklcam.__version__}\n" in ran.stdout
    assert not {*ran.stdout.splitlines()[-1].split()}.intersection(HEAVY)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([], "required: COMMAND"),
        (["explan"], "invalid choice: 'explan'"),
        (["explain", "pets", "--model", "m"], "required: --out"),
        (["explain", "pets", "--out", "o"], "required: --model"),
        (["explain", "pets", "--model", "m", "--ou", "o"], "required: --out"),
        (["info", "m", "--model", "m"], "unrecognized arguments: --model"),
        (["evaluate", "p", "--model", "m", "--image-size", "a"], "such as 224 or 224x320; got 'a'"),
        (
            ["explain", "p", "--model", "m", "--model", "n", "--out", "o"],
            "takes one model here; eval",
        ),
        (["evaluate", "p", "--model", "m", "--mean", "1,x"], "one per channel, .* got '1,x'"),
    ],
)
def test_errors_in_usage(line, said, capsys):
    assert command_line.main(line) == 2
    assert re.search(said, capsys.readouterr().err)


def test_sizes_and_numbers():
    parsed = arguments.parser().parse_args(
        [
            "evaluate",
            "p",
            "--model",
            "m",
            "--image-size",
            "64x32",
            "--mean",
            "0.1,0.2",
            "--std",
            "1",
        ]
    )
    assert (parsed.image_size, parsed.mean, parsed.std) == ((64, 32), [0.1, 0.2], 1.0)


def test_the_package_installs_the_command():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, name = project["scripts"]["sklcam"].split(":")
    assert getattr(import_module(module), name) is command_line.main


@pytest.mark.parametrize("page", ["README.md", "docs/howto/command_line.rst"])
def test_commands_in_the_documentation_are_taken(page):
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^ *sklcam ((?:explain|evaluate|report|info) .*)", text, re.MULTILINE)
    assert lines
    for line in lines:
        arguments.parser().parse_args(shlex.split(line.split("|")[0], comments=True))


# As a process


def test_a_process_prints_json_alone_and_its_progress_beside_it(at, tmp_path):
    command = [
        sys.executable,
        "-m",
        "sklcam",
        "explain",
        "pets",
        "--model",
        "pets.sklcam",
        "--json",
    ]
    ran = subprocess.run([*command, "--out", tmp_path / "o"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["n_images"] == len(SIZES)
    assert f"{len(SIZES)}/{len(SIZES)}" in ran.stderr


def test_python_m_ends_with_the_code_of_the_command(at, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "sklcam.__main__", raising=False)  # it is run, not imported
    monkeypatch.setattr(sys, "argv", ["sklcam", "info", "weights.pt"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("sklcam", run_name="__main__")
    assert ended.value.code == 1
    told = "sklcam: error: 'weights.pt' is not a file that sklcam.save has written.\n"
    assert capsys.readouterr() == ("", told)


# Explain


def test_explain_writes_what_the_library_says(run, loaded, tmp_path):
    out = tmp_path / "deep" / "maps"
    assert run("explain", "--out", out) == (0, f"{out}: {len(SIZES)} images explained\n", "")
    names = sorted(SIZES)
    paths = [f"pets/{name}" for name in names]
    chances, maps = loaded.predict_proba(paths), loaded.explain(paths)
    rows = rows_in(out / "predictions.csv")
    assert [row["file"] for row in rows] == names
    for name, row, chance, map_ in zip(names, rows, chances, maps, strict=True):
        assert (row["predicted"], row["explained"], row["remark"]) == ("dog", "dog", "")
        assert float(row["probability"]) == pytest.approx(chance[1], abs=1e-6)
        np.testing.assert_allclose(np.load(out / "arrays" / f"{name}.npy"), map_, atol=1e-6)
        with Image.open(out / "overlays" / f"{name}.png") as drawn:
            assert drawn.size == SIZES[name] and drawn.format == "PNG"
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) == 2 * len(SIZES) + 1  # nothing else, and no name twice


def test_explain_in_batches_is_the_same(run, tmp_path):
    for name, options in {"all": [], "two": ["--batch-size", 2]}.items():
        assert run("explain", "--out", tmp_path / name, *options)[0] == 0
    for one in (tmp_path / "all" / "arrays").rglob("*.npy"):
        two = tmp_path / "two" / one.relative_to(tmp_path / "all")
        np.testing.assert_allclose(np.load(one), np.load(two), atol=1e-5)


def test_explain_at_the_images_own_sizes(run, loaded, tmp_path):
    out = tmp_path / "maps"
    options = ("--frame=image", "--format=jpeg", "--longest=35", "--method=layercam")
    assert run("explain", "--out", out, *options)[0] == 0
    paths = [f"pets/{name}" for name in sorted(SIZES)]
    maps = loaded.explain(paths, frame="image", method="layercam")
    for name, map_ in zip(sorted(SIZES), maps, strict=True):
        np.testing.assert_allclose(np.load(out / "arrays" / f"{name}.npy"), map_, atol=1e-6)
        with Image.open(out / "overlays" / f"{name}.jpg") as drawn:
            assert max(drawn.size) == 35 and drawn.format == "JPEG"


def test_what_is_not_wanted_is_not_written(run, tmp_path):
    assert run("explain", "--out", tmp_path / "o", "--no-overlays", "--no-arrays")[0] == 0
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["predictions.csv"]


def test_blank_maps_are_told_and_leave_the_image_as_it_is(run, tmp_path):
    code, told, warned = run("explain", "--out", tmp_path / "o", "--target", "cat")
    assert code == 0 and told.endswith(f"explained; {len(SIZES)} with a remark\n")
    assert warned.startswith("sklcam: warning: 4 of 4 maps are blank") and warned.count("\n") == 1
    rows = rows_in(tmp_path / "o" / "predictions.csv")
    assert {row["remark"] for row in rows} == {"no positive evidence"}
    assert {row["explained"] for row in rows} == {"cat"}
    with (
        Image.open("pets/dog/a.png") as image,
        Image.open(tmp_path / "o" / "overlays" / "dog" / "a.png.png") as drawn,
    ):
        grey = np.asarray(image.convert("L"), int)
        assert abs(np.asarray(drawn, int) - grey[..., None]).max() <= 1


def test_an_overlay_is_as_opaque_as_its_map_is_high():
    picture, map_ = np.full((1, 3), 0.6), torch.tensor([[0.0, 0.5, 1.0]])
    drawn = 255 * overlay(picture, map_, (1, 3), resize=Resizing())[0]
    top = 255 * np.array(matplotlib.colormaps["viridis"]([0.0, 128 / 255, 1.0])[:, :3])
    expected = [[153] * 3, (153 + top[1]) / 2, top[2]]
    np.testing.assert_allclose(drawn, expected, atol=2)


@pytest.mark.parametrize(
    ("target", "explained"), [("cat", "cat"), ("1", "dog"), ("0", "cat"), (None, "dog")]
)
def test_targets_by_name_and_number(target, explained, run, tmp_path):
    options = [] if target is None else ["--target", target]
    assert run("explain", "--out", tmp_path / "o", "--no-overlays", "--no-arrays", *options)[0] == 0
    assert {row["explained"] for row in rows_in(tmp_path / "o/predictions.csv")} == {explained}


def test_the_folders_class_as_the_target(run, tmp_path):
    assert run("explain", "--out", tmp_path / "o", "--target=true", "--no-overlays")[0] == 0
    for row in rows_in(tmp_path / "o" / "predictions.csv"):
        assert row["explained"] == row["file"].split("/")[0]


def test_a_number_that_is_two_classes_is_refused(at, run, tmp_path):
    named = CAMExplainer(network(), **PREPARED).fit()
    named.class_names_ = np.array(["1", "0"])  # as some data sets name theirs
    sklcam.save(named, tmp_path / "named.sklcam")
    told = run(
        "explain", "--out", tmp_path / "o", "--target=1", model=str(tmp_path / "named.sklcam")
    )
    assert told[0] == 1 and "--target 1 fits 2 classes. Give a name" in told[2]


def test_one_image(run, tmp_path):
    code, told, _ = run("explain", "--out", tmp_path / "o", place="pets/cat/1.png")
    assert code == 0 and told.endswith(": 1 image explained\n")
    assert (tmp_path / "o" / "overlays" / "1.png.png").is_file()


def test_one_image_is_explained_beside_it(run, at):
    """Its overlays are not taken for images next time, as the call names the image."""
    code, _, error = run("explain", "--out", "pets/cat/maps", place="pets/cat/1.png")
    shutil.rmtree(at / "pets" / "cat" / "maps", ignore_errors=True)
    assert (code, error) == (0, "")
    assert run("explain", "--out", "pets/maps")[0] == 1


def test_another_process_that_ended_first_is_named(run, monkeypatch, tmp_path):
    def gone(folder, chunk, content):
        shutil.rmtree(folder.path)
        raise FileNotFoundError

    monkeypatch.setattr("sklcam._folders.ChunkFolder.finish", gone)
    code, _, error = run("explain", "--out", tmp_path / "o", "--no-overlays")
    assert code == 1 and "another process wrote to --out" in error


def test_overwriting_replaces_what_there_was_of_an_image_and_nothing_else(run, tmp_path):
    out = tmp_path / "o"
    assert run("explain", "--out", out)[0] == 0
    (out / "notes.txt").write_text("mine")
    code, _, told = run("explain", "--out", out, "--no-arrays")
    assert code == 1 and "already exists and is not empty" in told
    assert run("explain", "--out", out, "--no-arrays", "--format=jpeg", "--overwrite")[0] == 0
    assert (out / "notes.txt").read_text() == "mine"
    found = sorted(path.suffix for path in out.rglob("*") if path.is_file())
    assert found == [".csv", *[".jpg"] * len(SIZES), ".txt"]


@pytest.fixture
def broken(tmp_path):
    """A folder of two classes, each with a broken image: one is no image, the other half of one."""
    folder = tmp_path / "broken"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), "red").save(folder / name / "b.png")
    (folder / "cat" / "a.png").write_bytes(b"no image")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(folder / "dog" / "c.jpg")
    whole = (folder / "dog" / "c.jpg").read_bytes()
    (folder / "dog" / "c.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.parametrize("command", ["explain", "evaluate", "report"])
def test_broken_images_are_refused_by_their_names_before_any_work(command, run, broken, tmp_path):
    out = tmp_path / "o"
    code, told, error = run(command, "--out", out, place=str(broken))
    assert (code, told) == (1, "") and error.count("\n") == 1 and not out.exists()
    assert error.startswith("sklcam: error: 2 of 4 images cannot be read: ")
    assert f"{broken}/cat/a.png (cannot identify image file), {broken}/dog/c.jpg (" in error
    assert "--skip-unreadable" in error


def test_explain_skips_broken_images(run, broken, tmp_path):
    out = tmp_path / "o"
    options = ("--out", out, "--target=true", "--no-overlays", "--skip-unreadable")
    code, told, warned = run("explain", *options, place=str(broken))
    assert code == 0 and told.endswith("2 images explained; 1 with a remark; 2 images skipped\n")
    for name in ("cat/a.png", "dog/c.jpg"):
        assert f"skipped, as it cannot be read as an image: {broken / name} (" in warned
    rows = [
        (row["file"], row["explained"], row["remark"]) for row in rows_in(out / "predictions.csv")
    ]
    assert rows == [
        ("cat/a.png", "", "cannot be read"),
        ("cat/b.png", "cat", "no positive evidence"),
        ("dog/b.png", "dog", ""),
        ("dog/c.jpg", "", "cannot be read"),
    ]
    assert [path.name for path in out.rglob("*.npy")] == ["b.png.npy"] * 2
    assert "1 of 2 maps are blank" in warned


def test_evaluate_and_report_skip_broken_images(run, broken, tmp_path):
    values, page = tmp_path / "values.csv", tmp_path / "page.html"
    options = ("--metrics=accuracy", "--skip-unreadable", "--json", "--out")
    for command, out in (("evaluate", values), ("report", page)):
        code, told, _ = run(command, *options, out, place=str(broken))
        assert code == 0
        found = json.loads(told)
        assert found["n_images"] == 2 and found["methods"]["gradcam"]["accuracy"]["mean"] == 0.5
        assert [each["file"] for each in found["skipped"]] == ["cat/a.png", "dog/c.jpg"]
        assert found["skipped"][0]["reason"] == "cannot identify image file"
    rows = [(row["file"], row["accuracy"]) for row in rows_in(values)]
    assert sorted(rows) == [
        ("cat/a.png", ""),
        ("cat/b.png", "0.0"),
        ("dog/b.png", "1.0"),
        ("dog/c.jpg", ""),
    ]
    said = "<p>2 images could not be read and were left out: cat/a.png, dog/c.jpg.</p>"
    assert said in page.read_text(encoding="utf-8")


def test_nothing_is_left_where_all_images_are_broken(run, broken, tmp_path):
    place = str(broken / "cat" / "a.png")
    code, _, told = run("explain", "--out", tmp_path / "o", "--skip-unreadable", place=place)
    assert code == 1 and "1 of 1 image cannot be read" in told and "Give a folder with" in told


@pytest.fixture
def interrupted(monkeypatch, run):
    """Explain in chunks of two images, and stop when the third is written."""
    monkeypatch.setattr("sklcam.explain.stored._ABOUT_A_CHUNK", 2)
    write_whole = explaining.write_whole

    def call(*options):
        with monkeypatch.context() as patched:
            written = []

            def stop(path, content):
                written.append(path)
                if len(written) == 6:  # of two for each image
                    raise KeyboardInterrupt
                write_whole(path, content)

            patched.setattr(explaining, "write_whole", stop)
            return run("explain", "--batch-size=1", *options)

    return call


def times_of(out):
    files = [*(out / "arrays").rglob("*.npy"), *(out / "overlays").rglob("*.png")]
    return {path.relative_to(out): path.stat().st_mtime_ns for path in files}


def test_the_same_explain_continues_after_an_interruption(interrupted, run, tmp_path):
    out, options = tmp_path / "o", ("--batch-size=1", "--out")
    code, told, error = interrupted("--out", out)
    assert (code, told, error) == (130, "", "sklcam: interrupted; the same command continues\n")
    assert not (out / "predictions.csv").exists()
    before = times_of(out)
    code, told, _ = run("explain", *options, out)
    assert (code, told) == (0, f"{out}: 4 images explained, 2 of them before\n")
    assert run("explain", *options, tmp_path / "whole")[0] == 0
    after = times_of(out)
    for name in sorted(SIZES)[:2]:
        for path in (Path("arrays", f"{name}.npy"), Path("overlays", f"{name}.png")):
            assert after[path] == before[path]  # not written again
    for path in (tmp_path / "whole").rglob("*.*"):
        assert (out / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert {path.name for path in out.iterdir()} == {"arrays", "overlays", "predictions.csv"}


def test_what_was_begun_with_something_else_is_not_continued(interrupted, run, at, tmp_path):
    out = tmp_path / "o"
    place = shutil.copytree("pets", tmp_path / "pets")
    options = ("--out", out, "--batch-size=1")
    assert interrupted(*options)[0] == 130
    for changed, said in (
        (("--method=layercam",), r"method \(\S+GradCAM.* there, \S+LayerCAM.* now\)"),
        (("--layer=features.9",), "target layers"),
        (("--target=dog",), r"target \(None there, dog now\)"),
        (("--format=jpeg",), r"--format \(png there, jpeg now\)"),
    ):
        code, _, error = run("explain", *options, *changed)
        assert code == 1 and re.search(f"These differ: .*{said}.*--overwrite to start over", error)
    assert run("explain", *options, place=str(place))[0] == 1
    (at / "pets" / "cat" / "1.png").touch()  # a photograph that was changed meanwhile
    code, _, error = run("explain", *options)
    assert code == 1 and "These differ: sizes or dates of the images' files." in error
    code, told, _ = run("explain", *options, "--method=layercam", "--overwrite")
    assert (code, told) == (0, f"{out}: 4 images explained\n")


# Models


def test_a_network_by_name_with_a_file_of_weights(run, loaded, tmp_path):
    by_name = {"model": "torchvision/squeezenet1_1"}
    options = ("--weights=weights.pt", "--out", tmp_path / "o", "--no-overlays")
    code, _, told = run("explain", *options, **by_name)
    assert code == 1 and "No source says how to prepare images for the" in told
    assert "--image-size, --resize, --mean, --std as in training" in told
    assert not (tmp_path / "o").exists()
    code, _, told = run("explain", *options, *SAID[:3], **by_name)
    assert code == 1 and "Give --std as in training" in told
    assert run("explain", *options, *SAID, "--classes=names.txt", **by_name)[0] == 0
    expected = loaded.explain([f"pets/{name}" for name in sorted(SIZES)])[-1]
    np.testing.assert_allclose(np.load(tmp_path / "o/arrays/dog/a.png.npy"), expected, atol=1e-6)
    assert rows_in(tmp_path / "o" / "predictions.csv")[0]["predicted"] == "dog"


def test_a_file_whose_images_nobody_describes(run, tmp_path):
    """Its explainer prepares paths as ImageNet's images, which the network may never have seen."""
    path = str(tmp_path / "bare.sklcam")
    sklcam.save(CAMExplainer(network(), classes=["cat", "dog"]).fit(), path)
    options = ("--out", tmp_path / "o", "--no-overlays")
    code, _, told = run("explain", *options, model=path)
    assert code == 1 and "Give --image-size, --mean, --std as in training, or" in told
    assert run("explain", *options, *SAID, model=path)[0] == 0
    assert run("explain", "--out", tmp_path / "p", "--no-overlays")[0] == 0
    for name in SIZES:
        one, other = (np.load(tmp_path / each / "arrays" / f"{name}.npy") for each in "op")
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_an_explainer_of_embeddings(at, run, tmp_path):
    paths = [f"pets/{name}" for name in sorted(SIZES)]
    explainer = EmbeddingCAMExplainer(network(), verbose=0, **PREPARED)
    sklcam.save(explainer.fit(paths, ["cat"] * 3 + ["dog"]), tmp_path / "e.sklcam")
    model = str(tmp_path / "e.sklcam")
    assert run("explain", "--out", tmp_path / "o", "--precision=fp32", model=model)[0] == 0
    predicted = [row["predicted"] for row in rows_in(tmp_path / "o" / "predictions.csv")]
    assert predicted == explainer.predict(paths).tolist()
    expected = explainer.explain(paths)[-1]
    np.testing.assert_allclose(np.load(tmp_path / "o/arrays/dog/a.png.npy"), expected, atol=1e-6)
    code, _, told = run("explain", "--out", tmp_path / "p", "--layer=features.9", model=model)
    assert code == 1 and "keeps the settings of its fit. Leave out --layer." in told


def test_another_layer_of_a_file_leaves_its_classes(run, tmp_path):
    paths = [f"pets/{name}" for name in sorted(SIZES)]
    explainer = CAMExplainer(network(), verbose=0, **PREPARED).fit(paths, ["cat"] * 3 + ["dog"])
    sklcam.save(explainer, tmp_path / "a.sklcam")
    options = ("--layer=features.9", "--precision=fp32", "--no-overlays")
    model = str(tmp_path / "a.sklcam")
    assert run("explain", "--out", tmp_path / "o", *options, model=model)[0] == 0
    other = CAMExplainer(network(), target_layer="features.9", verbose=0, **PREPARED).fit()
    expected = other.explain(paths)[-1]
    np.testing.assert_allclose(np.load(tmp_path / "o/arrays/dog/a.png.npy"), expected, atol=1e-6)
    assert {row["explained"] for row in rows_in(tmp_path / "o" / "predictions.csv")} == {"dog"}


def test_a_trained_classifier(run, tmp_path):
    images = np.random.default_rng(0).random((4, 64, 64, 3), np.float32)
    clf = ConsistentCAMClassifier(
        "squeezenet1_1", alpha=0, beta=0, image_size=64, max_epochs=1, train_split=None, verbose=0,
        random_state=0,
    ).fit(images, ["cat", "dog"] * 2)  # fmt: skip
    path = str(tmp_path / "clf.sklcam")
    sklcam.save(clf, path)
    for name, options in {"own": [], "other": ["--layer=features.9", "--device=cpu"]}.items():
        code, _, told = run("explain", "--out", tmp_path / name, *options, model=path)
        assert code == 0, told
        for row in rows_in(tmp_path / name / "predictions.csv"):
            assert row["predicted"] == clf.predict([f"pets/{row['file']}"])[0]
    expected = clf.explain(["pets/dog/a.png"])[0]
    np.testing.assert_allclose(np.load(tmp_path / "own/arrays/dog/a.png.npy"), expected, atol=1e-5)
    other = np.load(tmp_path / "other" / "arrays" / "dog" / "a.png.npy")
    assert abs(other - expected).max() > 0.01
    code, _, told = run("explain", "--out", tmp_path / "o", "--mean=0.5", model=path)
    assert code == 1 and "keeps the settings of its fit. Leave out --mean." in told


# Evaluate, report and info


def test_evaluate_prints_the_librarys_numbers(run, loaded, tmp_path):
    values = tmp_path / "values.csv"
    options = ("--metrics=accuracy,sparsity", "--method=gradcam,layercam", "-o", values)
    code, told, error = run("evaluate", *options, "--json")
    assert (code, error) == (0, "")
    paths, labels = [f"pets/{name}" for name in sorted(SIZES)], ["cat"] * 3 + ["dog"]
    expected = evaluate(
        loaded, paths, labels, metrics=("accuracy", "sparsity"), method=["gradcam", "layercam"],
        progress=False,
    )  # fmt: skip
    found = json.loads(told)
    assert found["n_images"] == 4 and found["has_labels"] is True
    rows = rows_in(values)
    for method, result in expected.items():
        for name, row in result.summary().items():
            assert found["methods"][method][name] == pytest.approx(dict(row), abs=1e-5)
        of_method = [row for row in rows if row["method"] == method]
        assert [row["file"] for row in of_method] == sorted(SIZES)
        sparsity = [float(row["sparsity"]) for row in of_method]
        np.testing.assert_allclose(sparsity, result["sparsity"], atol=1e-5)
    code, told, _ = run("evaluate", "--metrics=accuracy")
    assert code == 0 and re.search(r"^gradcam, 4 images\n.*mean.*\naccuracy +0\.2500 ", told)


@pytest.fixture
def other(tmp_path):
    """A file of a network that always answers "cat", without blank maps for it."""
    made = network()
    with torch.no_grad():
        made.classifier[1].weight.copy_(made.classifier[1].weight.flip(0) * 2)
    path = str(tmp_path / "other.sklcam")
    sklcam.save(CAMExplainer(made, classes=["cat", "dog"], **PREPARED).fit(), path)
    return path


def test_evaluate_compares_models_image_by_image(run, loaded, other, tmp_path):
    values = tmp_path / "values.csv"
    options = (f"--model={other}", "--metrics=accuracy,sparsity", "-o", values)
    code, told, _ = run("evaluate", *options, "--json")
    assert code == 0
    found = json.loads(told)
    assert found["model"] == ["pets.sklcam", other] and list(found["methods"]) == ["pets", "other"]
    paths, labels = [f"pets/{name}" for name in sorted(SIZES)], ["cat"] * 3 + ["dog"]
    given = {"metrics": ("accuracy", "sparsity"), "progress": False}
    results = [
        evaluate(each, paths, labels, **given)
        for each in (sklcam.load(other).set_params(verbose=0), loaded)
    ]
    table = found["differences"]["other against pets"]
    for name, row in compare(*results).items():
        assert table[name]["mean"] == pytest.approx(row.mean, abs=1e-5)
        assert table[name]["low"] == pytest.approx(row.low, abs=1e-5)
    accuracy = table["accuracy"]  # of 3, and of 1 of 4 images: too few to tell
    assert (accuracy["mean"], accuracy["verdict"]) == (0.5, "no clear difference")
    rows = [(row["model"], row["method"], row["accuracy"]) for row in rows_in(values)]
    right = ["0.0", "0.0", "0.0", "1.0"]
    assert rows[:4] == [("pets", "gradcam", each) for each in right]
    assert [row[0] for row in rows[4:]] == ["other"] * 4
    code, told, _ = run("evaluate", *options, "--overwrite", f"--store={tmp_path / 'kept'}")
    assert code == 0 and sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        *("other", "pets")
    ]
    assert re.search(r"^other, 4 images$", told, re.MULTILINE)
    said = (
        r"^other against pets\n +difference +95 % interval\naccuracy +0\.5000 +\S+ \.\. \S+ +no cl"
    )
    assert re.search(said, told, re.MULTILINE)


def test_a_difference_that_is_clear_is_called_better_or_worse():
    many = {"accuracy": np.ones(40), "dauc": np.full(40, 0.2)}
    none = {"accuracy": np.zeros(40), "dauc": np.full(40, 0.1)}
    found = measuring._differences({"a": Evaluation(**none), "b": Evaluation(**many)})
    words = {name: row["verdict"] for name, row in found["b against a"].items()}
    assert words == {"accuracy": "better", "dauc": "worse"}


def test_numbers_that_are_not_are_null_in_json(run):
    blank = ("--metrics=sparsity", "--target=cat", "--json")
    code, told, _ = run("evaluate", *blank)
    assert code == 0
    json.loads(told, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert plain({"a": np.float32("nan"), 1: [np.inf, np.int64(2)], "p": Path("x")}) == {
        **{"a": None, "1": [None, 2]},
        "p": "x",
    }


def test_folders_that_are_not_classes(run, tmp_path):
    (tmp_path / "photos" / "2024").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "photos" / "2024" / "a.png")
    place = str(tmp_path / "photos")
    code, _, told = run("evaluate", "--metrics=sparsity", place=place)
    assert code == 1 and "are not labels of the model" in told and "'2024'" in told
    code, told, _ = run("evaluate", "--metrics=sparsity", "--no-labels", "--json", place=place)
    assert code == 0 and json.loads(told)["has_labels"] is False
    Image.new("RGB", (8, 8), "red").save(tmp_path / "photos" / "b.png")
    code, _, told = run("evaluate", "--metrics=sparsity", place=place)
    assert code == 1 and "b.png is beside the folders" in told


def test_report_writes_a_page(run, tmp_path):
    page = tmp_path / "page.html"
    options = ("-o", page, "--metrics=accuracy,sparsity", "--images=2")
    code, told, _ = run("report", *options, "--json")
    assert code == 0 and json.loads(told)["out"] == str(page)
    assert json.loads(told)["methods"]["gradcam"]["accuracy"]["mean"] == 0.25
    text = page.read_text(encoding="utf-8")
    assert "<title>Explanations of pets</title>" in text and "cat/1.jpg" in text
    code, _, told = run("report", *options)
    assert code == 1 and "already exists. Give another name, or --overwrite" in told
    assert run("report", *options, "--overwrite", "--title=Mine")[0] == 0
    assert "<title>Mine</title>" in page.read_text(encoding="utf-8")


def test_report_compares_models_and_methods(run, tmp_path):
    page = tmp_path / "page.html"
    other = tmp_path / "other.sklcam"
    shutil.copy("pets.sklcam", other)
    options = ("-o", page, "--metrics=accuracy,sparsity", "--json")
    code, told, _ = run("report", *options, f"--model={other}", "--method=gradcam,layercam")
    assert code == 0
    found = json.loads(told)
    assert found["model"] == ["pets.sklcam", str(other)]
    assert list(found["methods"]) == [
        f"{model}, {method}" for model in ("pets", "other") for method in ("gradcam", "layercam")
    ]
    assert "Explanations of pets and other<" in page.read_text(encoding="utf-8")
    code, _, told = run("report", *options, "--overwrite", "--model=pets.sklcam")
    assert code == 1 and "The models must have different names" in told
    birds = CAMExplainer(network(), classes=["tit", "wren"], **PREPARED).fit()
    sklcam.save(birds, tmp_path / "birds.sklcam")
    code, _, told = run("report", *options, "--overwrite", f"--model={tmp_path / 'birds.sklcam'}")
    assert code == 1
    assert re.search(r"classes of \S+birds.sklcam differ from those of pets.sklcam: .*\['cat", told)


@pytest.mark.parametrize("options", [(), ("--no-labels", "--target=cat")])
def test_report_compares_no_classes_of_another_order(options, run, tmp_path):
    for name, classes in (("one", ["cat", "dog"]), ("two", ["dog", "cat"])):
        named = CAMExplainer(network(), **PREPARED).fit()
        named.class_names_ = np.array(classes)
        sklcam.save(named, tmp_path / f"{name}.sklcam")
    given = ("-o", tmp_path / "page.html", "--metrics=sparsity", *options)
    other = f"--model={tmp_path / 'two.sklcam'}"
    code, _, told = run("report", *given, other, model=str(tmp_path / "one.sklcam"))
    assert code == 1 and "or are in another order" in told


def test_info(at, capsys):
    assert command_line.main(["info", "pets.sklcam"]) == 0
    card = capsys.readouterr().out
    assert card == sklcam.model_card(sklcam.load("pets.sklcam"), file="pets.sklcam")
    assert command_line.main(["info", "pets.sklcam", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["estimator"], told["task"], told["card"]) == ("CAMExplainer", "multiclass", card)
    assert (told["classes"], told["image_size"], told["mean"]) == (["cat", "dog"], [64, 64], 0.5)
    assert told["target_layers"] == ["features.12"]
    assert command_line.main(["info", "efficientnet_lite0"]) == 1
    assert "no file 'efficientnet_lite0'. Give a file that sklcam.save" in capsys.readouterr().err


# Errors, warnings and what else is printed


@pytest.fixture
def instead(monkeypatch, at):
    """Let the command do something else, and return its code."""

    def main_with(action, *options):
        monkeypatch.setattr("sklcam.command_line.describing.run", action)
        return command_line.main(["info", "pets.sklcam", *options])

    return main_with


def fails(arguments):
    raise RuntimeError("out of\nmemory")


def test_other_errors_are_told_with_their_kind(instead, capsys):
    assert instead(fails) == 1
    told = "sklcam: error: RuntimeError: out of memory (--traceback shows where)\n"
    assert capsys.readouterr().err == told


def test_developers_get_the_traceback(instead, monkeypatch):
    with pytest.raises(RuntimeError, match="out of"):
        instead(fails, "--traceback")
    monkeypatch.setenv("SKLCAM_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="out of"):
        instead(fails)


def test_interruptions(instead, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    assert instead(interrupted) == 130
    assert capsys.readouterr().err == "sklcam: interrupted\n"


def test_what_others_print_and_warn_of_is_not_in_the_json(instead, capsys):
    def talks(arguments):
        print("downloading")
        warnings.warn("two\nlines", UserWarning, stacklevel=1)
        return command_line.results.Result("text", {"a": 1})

    assert instead(talks, "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"a": 1}
    assert printed.err == "downloading\nsklcam: warning: two lines\n"


def test_a_reader_that_has_seen_enough(at):
    """As `sklcam info FILE | head -0` does: no traceback, and no error when Python ends."""
    code = (
        "import sys; from sklcam.command_line import entry\n"
        "from sklcam.command_line.results import Result\n"
        "import types; module = types.ModuleType('sklcam.command_line.describing')\n"
        "module.run = lambda arguments: Result('x' * 1_000_000, {})\n"
        "sys.modules[module.__name__] = module; sys.exit(entry.main(['info', 'x']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, told) == (1, b"")
