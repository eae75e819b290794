"""Maps of many images in a folder: killed and gone on with, shared by processes, and refused."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from processes import in_a_process
from small_networks import SmallNet

import sklcam
from sklcam import CAMExplainer
from sklcam._folders import ChunkFolder
from sklcam.cam import GradCAM, TopK

N = 11
IMAGES = torch.rand(N, 1, 16, 16, generator=torch.Generator().manual_seed(0))
CHUNKS = {"chunk_size": 4}  # of two batches each, and the last of two and one


def network():
    torch.manual_seed(0)
    return SmallNet().eval()


def explainer(model=None, **options):
    shared = {"target_layer": "5", "batch_size": 2, "verbose": 0}
    return CAMExplainer(network() if model is None else model, **{**shared, **options}).fit(IMAGES)


@pytest.fixture(scope="module")
def ours():
    return explainer()


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# What is written


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": ["gradcam", "scorecam"]},
        {"method": {"one/two": GradCAM(relu=False)}, "normalize": False},
        {"target": 2},
        {"target": TopK(2), "dtype": "float16"},
        {"target": np.arange(N) % 3, "frame": "layer"},
    ],
)
def test_maps_are_those_of_explain(ours, options, tmp_path):
    ours.explain_to(IMAGES, tmp_path / "new" / "maps", **options, **CHUNKS)
    maps, expected = sklcam.open_maps(tmp_path / "new" / "maps"), ours.explain(IMAGES, **options)
    if not isinstance(expected, dict):
        maps, expected = {"": maps}, {"": expected}
    assert maps.keys() == expected.keys()
    for name, each in maps.items():
        assert isinstance(each, np.memmap) and not each.flags.writeable
        assert each.dtype == expected[name].dtype
        assert_array_equal(each, expected[name])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["maps"]


def test_a_chunk_is_of_whole_batches(ours, tmp_path):
    ours.explain_to(IMAGES, tmp_path / "maps")
    assert ChunkFolder(tmp_path / "maps").chunk_size == 256
    explainer(batch_size=3).explain_to(IMAGES, tmp_path / "others")
    assert ChunkFolder(tmp_path / "others").chunk_size == 255


def test_nothing_is_done_twice(ours, tmp_path):
    ours.explain_to(IMAGES, tmp_path / "maps", **CHUNKS)
    before, passes = contents(tmp_path / "maps"), []
    handle = ours.model_.register_forward_hook(lambda *_: passes.append(1))
    ours.explain_to(IMAGES, tmp_path / "maps")
    handle.remove()
    assert not passes and contents(tmp_path / "maps") == before


# Killed


def explain_until_killed(path, n_passes):
    torch.set_num_threads(1)
    ours, passes = explainer(), []

    def kill(*_):
        passes.append(1)
        if len(passes) > n_passes:
            os.kill(os.getpid(), signal.SIGKILL)

    ours.model_.register_forward_hook(kill)
    ours.explain_to(IMAGES, path, method=["gradcam", "layercam"], **CHUNKS)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
@pytest.mark.parametrize("n_passes", [2, 3])
def test_killed_again_and_again_it_ends_with_the_same_maps(n_passes, ours, tmp_path):
    """A chunk is two batches: killed in the second, or third, it has one chunk more each time."""
    exits, done = [], []
    while 0 not in exits and len(exits) < 9:
        process = in_a_process(explain_until_killed, tmp_path / "maps", n_passes)
        process.join()
        exits.append(process.exitcode)
        done.append(ChunkFolder(tmp_path / "maps").n_done)
        if done[-1] < N:
            with pytest.raises(ValueError, match=f"has only {done[-1]} of 11 images"):
                sklcam.open_maps(tmp_path / "maps")
    assert exits == [-signal.SIGKILL, -signal.SIGKILL, 0] and done == [4, 8, 11]
    maps = sklcam.open_maps(tmp_path / "maps")
    for name, expected in ours.explain(IMAGES, method=["gradcam", "layercam"]).items():
        assert_array_equal(maps[name], expected)
    assert [path.name for path in tmp_path.iterdir()] == ["maps"]


def explain_and_die_in(path, name):
    torch.set_num_threads(1)
    ours = explainer()
    setattr(ChunkFolder, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    ours.explain_to(IMAGES, path, **CHUNKS)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
@pytest.mark.parametrize("name", ["finish", "check"])
def test_killed_between_a_chunk_and_its_mark(name, ours, tmp_path):
    process = in_a_process(explain_and_die_in, tmp_path / "maps", name)
    process.join()
    assert process.exitcode == -signal.SIGKILL and ChunkFolder(tmp_path / "maps").n_done == 0
    ours.explain_to(IMAGES, tmp_path / "maps")
    assert_array_equal(sklcam.open_maps(tmp_path / "maps"), ours.explain(IMAGES))


def explain_and_die_while_it_is_made(path):
    os.rename = lambda *_: os._exit(9)
    explain_a_share(path, None)


def test_killed_while_the_folder_is_made_there_is_none(ours, tmp_path):
    process = in_a_process(explain_and_die_while_it_is_made, tmp_path / "maps")
    process.join()
    assert process.exitcode == 9 and not (tmp_path / "maps").exists()
    (left,) = tmp_path.iterdir()
    os.utime(left, (0, 0))  # long ago
    ours.explain_to(IMAGES, tmp_path / "maps", **CHUNKS)
    assert [path.name for path in tmp_path.iterdir()] == ["maps"]


def test_a_full_disk_leaves_what_is_done(ours, tmp_path, monkeypatch):
    from sklcam.explain import stored

    written = []

    def write(self, start, rows):
        written.append(start)
        if start == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored._Rows, "write", write)
    with pytest.raises(OSError, match="No space"):
        ours.explain_to(IMAGES, tmp_path / "maps", **CHUNKS)
    assert written == [0, 2, 4]
    assert [*ChunkFolder(tmp_path / "maps").undone()] == [range(1, 3)]


# Shared


def explain_a_share(path, shard):
    torch.set_num_threads(1)
    explainer().explain_to(IMAGES, path, shard=shard, **CHUNKS)


def test_two_processes_share_a_folder(ours, tmp_path):
    both = [in_a_process(explain_a_share, tmp_path / "maps", (i, 2)) for i in range(2)]
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert_array_equal(sklcam.open_maps(tmp_path / "maps"), ours.explain(IMAGES))


def test_shares_are_of_all_chunks_once(ours, tmp_path):
    for count in range(1, 6):
        path = tmp_path / str(count)
        for index in reversed(range(count)):
            assert not path.exists() or not ChunkFolder(path).is_complete
            ours.explain_to(IMAGES, path, shard=(index, count), chunk_size=2)
        assert_array_equal(sklcam.open_maps(path), ours.explain(IMAGES))


# Refused


def other_weights():
    model = network()
    with torch.no_grad():
        model[8].bias += 1
    return explainer(model)


def test_what_differs_is_said(ours, tmp_path):
    path = tmp_path / "maps"
    ours.explain_to(IMAGES, path, shard=(0, 2), **CHUNKS)
    before = contents(path)
    others = IMAGES.clone()
    others[0, 0, 0, 0] += 0.5
    for call, match in [
        (lambda: ours.explain_to(IMAGES[:10], path), r"number of images \(11 there, 10 now\)"),
        (lambda: ours.explain_to(others, path), "differ: images. Continue"),
        (lambda: other_weights().explain_to(IMAGES, path), "differ: weights. Continue"),
        (
            lambda: explainer(target_layer="4").explain_to(IMAGES, path),
            r"differ: target layers \(.*5.*4",
        ),
        (lambda: explainer(precision="bf16").explain_to(IMAGES, path), "fp32 there, bf16 now"),
        (lambda: ours.explain_to(IMAGES, path, 1), r"target \(None there, 1 now\)"),
        (lambda: ours.explain_to(IMAGES, path, method="layercam"), r"differ: method \("),
        (
            lambda: ours.explain_to(IMAGES, path, method=GradCAM(relu=False)),
            r"method \(.*relu=false",
        ),
        (
            lambda: ours.explain_to(IMAGES, path, normalize=False),
            r"normalize \(True there, False now\)",
        ),
        (lambda: ours.explain_to(IMAGES, path, dtype="float16"), "float32 there, float16 now"),
        (lambda: ours.explain_to(IMAGES, path, frame="layer"), r"frame \(input there, layer now\)"),
        (lambda: ours.explain_to(IMAGES, path, chunk_size=6), "in chunks of 4 images, but chunk_s"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
        assert contents(path) == before
    with pytest.raises(FileExistsError, match="resume=True continues it"):
        ours.explain_to(IMAGES, path, resume=False)
    ours.explain_to(IMAGES, path)
    assert_array_equal(sklcam.open_maps(path), ours.explain(IMAGES))


def test_files_are_known_by_their_paths(tmp_path):
    for name in "abc":
        Image.new("RGB", (16, 16), (ord(name), 0, 0)).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / f"{name}.png") for name in "abc"]
    ours = CAMExplainer(SmallNet(in_channels=3).eval(), image_size=16, verbose=0).fit()
    ours.explain_to(paths, tmp_path / "maps")
    ours.explain_to(np.array(paths), tmp_path / "maps")
    with pytest.raises(ValueError, match=r"differ: images\. Continue"):
        ours.explain_to(paths[::-1], tmp_path / "maps")


def test_other_folders_are_left_alone(ours, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"a photo")
    with pytest.raises(ValueError, match=r"not a folder of maps .* no about.json"):
        ours.explain_to(IMAGES, tmp_path)
    with pytest.raises(ValueError, match=r"not a folder of maps"):
        sklcam.open_maps(tmp_path / "photo.jpg")
    for about in ("[]", "{", json.dumps({"format": "something else"})):
        (tmp_path / "about.json").write_text(about)
        with pytest.raises(ValueError, match="does not have the format"):
            sklcam.open_maps(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["about.json", "photo.jpg"]
