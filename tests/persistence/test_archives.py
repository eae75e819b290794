"""Archives are read whole or refused, and written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
import struct
import subprocess
import sys
import textwrap
import time
import warnings
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pytest
import safetensors.torch
import torch
from forging import content_of, forged, resealed
from small_networks import SmallNet, digits

from sklcam import ConsistentCAMClassifier, load, save
from sklcam._files import replacing
from sklcam.persistence import PersistenceError, container

X, Y = digits(24)
OBJECTS = {"SmallNet": SmallNet}


def classifier(module=SmallNet) -> ConsistentCAMClassifier:
    options = {"image_size": 16, "max_epochs": 1, "verbose": 0, "random_state": 0}
    return ConsistentCAMClassifier(module, batch_size=12, **options)


@pytest.fixture(scope="module")
def fitted() -> ConsistentCAMClassifier:
    return classifier().fit(X, Y)


@pytest.fixture
def saved(fitted, tmp_path) -> Path:
    save(fitted, tmp_path / "estimator.sklcam")
    return tmp_path / "estimator.sklcam"


# Archives that are none of ours


def archive_of(folder: Path, *members, compression=zipfile.ZIP_STORED) -> Path:
    """Write a zip archive of any members, with a right checksum."""
    path = folder / "archive.sklcam"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        archive.comment = b"sha256:" + b"0" * 64
        for name, data in members:
            archive.writestr(name, data)
    return resealed(path)


TEXT = json.dumps({"format": "sklcam", "format_version": 2, "versions": {}}).encode()
EMPTY = safetensors.torch.save({})


@pytest.mark.parametrize(
    "members",
    [
        [("estimator.json", TEXT)],
        [("estimator.json", TEXT), ("weights.safetensors", EMPTY), ("more", b"")],
        [("estimator.json", TEXT), ("estimator.json", TEXT)],
        [("estimator.json", TEXT), ("weights.safetensors", EMPTY), ("weights.safetensors", EMPTY)],
        [("estimator.json", TEXT), ("../weights.safetensors", EMPTY)],
        [("estimator.json", TEXT), ("/etc/passwd", EMPTY)],
        [("estimator.json", TEXT), *((f"m{i}", b"") for i in range(2000))],
        [("weights.safetensors", EMPTY), ("estimator.json", TEXT)],
    ],
    ids=["few", "more", "twice", "twice more", "traversal", "absolute", "many", "order"],
)
def test_members_that_are_not_ours(members, tmp_path):
    begins = members[0][0] == "estimator.json"
    with pytest.raises(PersistenceError, match="in place of" if begins else "damaged"):
        load(archive_of(tmp_path, *members))
    assert [path.name for path in tmp_path.iterdir()] == ["archive.sklcam"]


def test_zip_bomb(tmp_path):
    bomb = [("estimator.json", b" " * 2**23), ("weights.safetensors", EMPTY)]
    path = archive_of(tmp_path, *bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**16
    with pytest.raises(PersistenceError, match="compressed"):
        load(path)


@pytest.mark.parametrize(("at", "value"), [(8, 8), (8, 12), (6, 1)], ids=["zip", "bzip", "locked"])
def test_members_that_say_they_are_not_plain(at, value, saved):
    data = bytearray(saved.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        found = data.find(signature)
        data[found + at + offset] = value
    saved.write_bytes(data)
    with pytest.raises(PersistenceError, match="compressed, encrypted"):
        load(resealed(saved), objects=OBJECTS)


def test_sizes_that_lie(tmp_path):
    path = archive_of(tmp_path, ("estimator.json", TEXT), ("weights.safetensors", EMPTY))
    data = bytearray(path.read_bytes())
    for at in [m.start() for m in re.finditer(b"PK\x01\x02", bytes(data))]:
        data[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)  # in the directory
    path.write_bytes(data)
    with pytest.raises(PersistenceError):
        load(resealed(path))


def test_json_of_more_than_the_limit(tmp_path, monkeypatch, fitted, saved):
    monkeypatch.setattr(container, "LARGEST_JSON", 1000)
    with pytest.raises(PersistenceError, match="at most 1000 are read"):
        load(saved, objects=OBJECTS)
    with pytest.raises(PersistenceError, match="more than a file may hold"):
        save(fitted, tmp_path / "a")


@pytest.mark.parametrize(
    "text",
    [b"[]," * 600_000, b'{"a":' * 600_000, b"0," * 1_100_000],
    ids=["lists", "objects", "numbers"],
)
def test_json_that_would_take_much_memory_is_not_parsed(text, tmp_path, monkeypatch):
    path = archive_of(tmp_path, ("estimator.json", text), ("weights.safetensors", EMPTY))
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    with pytest.raises(PersistenceError, match="more than a file may hold"):
        load(path)


def test_very_many_tensors_are_not_made(tmp_path, monkeypatch):
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(entry % i for i in range(140_000)) + b"}"
    weights = struct.pack("<Q", len(header)) + header
    path = archive_of(tmp_path, ("estimator.json", TEXT), ("weights.safetensors", weights))
    with pytest.raises(PersistenceError, match="more than 131072 tensors"):
        load(path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"format": "sklcam", "format": "sklcam"}',
        b'{"format": "sklcam", "format_version": NaN}',
        b"[" * 100000,
        TEXT[:-1] + b', "estimator": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
        b'{"format": "sklcam", "format_version": ' + b"9" * 1_000_000 + b"}",
        b'{"format": "sklcam", "format_version": 1' + b"0" * 400 + b"}",
    ],
)
def test_json_that_is_none_of_ours(text, tmp_path):
    with pytest.raises(PersistenceError) as caught:
        load(forged(tmp_path, text))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 100,
        struct.pack("<Q", 2) + b"{}" + b"rest",
        struct.pack("<Q", 60)
        + b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}',
        # two tensors in the same bytes
        struct.pack("<Q", 111)
        + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        + b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}   '
        + b"\0" * 4,
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04echo\x85R.",
    ],
)
def test_weights_that_are_no_safetensors(weights, fitted, tmp_path, monkeypatch):
    content, _ = content_of(fitted, tmp_path)
    monkeypatch.setattr(safetensors.torch, "save", lambda tensors: weights)
    with pytest.raises(PersistenceError):
        load(forged(tmp_path, content), objects=OBJECTS)


# Damage


def test_truncated_anywhere(saved):
    data = saved.read_bytes()
    step = max(1, len(data) // 150)
    for size in {*range(0, len(data), step), *range(100), *range(len(data) - 200, len(data))}:
        saved.write_bytes(data[:size])
        with pytest.raises(PersistenceError, match=r"not a file that|damaged"):
            load(saved, objects=OBJECTS)


def test_a_byte_flipped_anywhere(saved):
    data = saved.read_bytes()
    step = max(1, len(data) // 300)
    for at in {*range(0, len(data), step), *range(64), *range(len(data) - 300, len(data))}:
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        saved.write_bytes(damaged)
        with pytest.raises(PersistenceError, match=r"not a file that|damaged"):
            load(saved, objects=OBJECTS)


def test_bytes_put_before_and_after(saved):
    data = saved.read_bytes()
    for changed in (data + b"\0", b"\0" + data, data + data, data[:-71], data[1:]):
        saved.write_bytes(changed)
        with pytest.raises(PersistenceError):
            load(saved, objects=OBJECTS)


@pytest.mark.parametrize("member", [0, 1], ids=["json", "tensors"])
def test_damage_that_no_checksum_tells(member, saved, tmp_path):
    """Bytes changed at random, and all checksums made right: refused, or an estimator."""
    with zipfile.ZipFile(saved) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    name, data = members[member]
    random = np.random.default_rng(1)
    n_loaded = 0
    for _ in range(100):
        changed = bytearray(data)
        for at in random.integers(len(data), size=random.integers(1, 4)):
            changed[at] = random.integers(256)
        members[member] = (name, bytes(changed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                loaded = load(archive_of(tmp_path, *members), objects=OBJECTS)
            except PersistenceError:
                continue
        assert isinstance(loaded, ConsistentCAMClassifier)
        n_loaded += 1
    # Most of the tensors' bytes are numbers, which may be any; few of the JSON's may.
    assert n_loaded > 30 if member else 0 < n_loaded < 50
    members[member] = (name, data)
    assert load(archive_of(tmp_path, *members), objects=OBJECTS).initialized_


@pytest.mark.parametrize(
    "content", [b"", b"x", b"PK\x03\x04", b"\x80\x04\x95" + b"\0" * 200, os.urandom(300)]
)
def test_foreign_files(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(PersistenceError, match="not a file that"):
        load(tmp_path / "a")


def test_files_of_others(fitted, tmp_path):
    joblib.dump(fitted, tmp_path / "a")
    torch.save(fitted.module_.state_dict(), tmp_path / "b")
    np.savez(tmp_path / "c.npz", a=X)
    for name in ("a", "b", "c.npz"):
        with pytest.raises(PersistenceError, match="not a file that"):
            load(tmp_path / name)


# Writing


def failing(error):
    def write(archive, name, data, write=container._write_member):
        if name != "estimator.json":
            archive.fp.write(data[: len(data) // 2])
            raise error
        write(archive, name, data)

    return write


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), MemoryError()]
)
@pytest.mark.parametrize("there", [True, False])
def test_written_whole_or_not_at_all(error, there, fitted, tmp_path, monkeypatch):
    path = tmp_path / "estimator.sklcam"
    if there:
        save(classifier("resnet18"), path)
    before = path.read_bytes() if there else None
    monkeypatch.setattr(container, "_write_member", failing(error))
    with pytest.raises(type(error)):
        save(fitted, path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == (["estimator.sklcam"] if there else [])
    if there:
        assert path.read_bytes() == before
        assert load(path).module == "resnet18"


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_errors_at_the_end_of_writing(function, fitted, tmp_path, monkeypatch):
    path = tmp_path / "estimator.sklcam"
    save(classifier("resnet18"), path)

    def fail(*args):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="broken"):
        save(fitted, path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["estimator.sklcam"]
    assert load(path).module == "resnet18"


def test_old_file_is_there_until_the_new_one_is_complete(fitted, tmp_path, monkeypatch):
    path = tmp_path / "estimator.sklcam"
    save(classifier("resnet18"), path)
    before, seen = path.read_bytes(), []

    def spy(*args, replace=os.replace):
        seen.append((path.read_bytes() == before, Path(args[0]).parent == path.parent))
        load(args[0], objects=OBJECTS)  # whole before it takes the other's place
        replace(*args)

    monkeypatch.setattr(os, "replace", spy)
    save(fitted, path)
    assert seen == [(True, True)]
    assert load(path, objects=OBJECTS).initialized_


def test_where_to_save(fitted, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        save(fitted, tmp_path / "missing" / "a")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        save(fitted, tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")
    save(fitted, str(tmp_path / "a"))
    assert load(str(tmp_path / "a"), objects=OBJECTS).initialized_


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices are files")
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device"])
def test_devices_and_pipes_are_left_alone(kind, fitted, tmp_path):
    path, pipe = tmp_path / "a", tmp_path / "pipe"
    os.mkfifo(pipe)
    path.symlink_to(os.devnull if kind == "device" else pipe)
    if kind == "pipe":
        path.unlink()
        path = pipe
    with pytest.raises(OSError, match="device, a pipe"):
        save(fitted, path)
    with pytest.raises(PersistenceError, match="device or a pipe"):
        load(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == (
        ["pipe"] if kind == "pipe" else ["a", "pipe"]
    )


def test_links_are_followed(fitted, tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    save(fitted, link)
    assert link.is_symlink() and target.read_bytes() != b"old"
    assert load(link, objects=OBJECTS).initialized_


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_modes(fitted, tmp_path):
    before = os.umask(0o027)
    try:
        save(fitted, tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    (tmp_path / "a").chmod(0o604)
    save(fitted, tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o604


KILLED = """
import sys, time
from sklcam._files import replacing
with replacing(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process, and locks files")
def test_the_next_save_sweeps_what_a_killed_one_has_left(tmp_path):
    path = tmp_path / "a"
    others = ["b", ".a.tmp", f".b.{'0' * 16}.tmp", f".a.{'0' * 15}.tmp", f".a.{'x' * 16}.tmp"]
    for name in others:
        (tmp_path / name).write_bytes(b"of somebody else")
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "writing\n"
        long_ago = time.time() - 3600
        for each in tmp_path.iterdir():
            os.utime(each, (long_ago, long_ago))
        with replacing(path) as file:
            file.write(b"first")
        assert len([*tmp_path.iterdir()]) == len(others) + 2  # that of a process that is alive
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    with replacing(path) as file:
        file.write(b"second")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a", *others])
    assert path.read_bytes() == b"second"


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
def test_only_files_are_swept(tmp_path):
    (tmp_path / "target").write_bytes(b"kept")
    link, pipe = (tmp_path / f".a.{digit * 16}.tmp" for digit in "01")
    link.symlink_to(tmp_path / "target")
    os.mkfifo(pipe)
    for each in (link, pipe):
        os.utime(each, (0, 0))
    with replacing(tmp_path / "a") as file:
        file.write(b"x")
    assert link.is_symlink() and pipe.exists() and (tmp_path / "target").exists()
