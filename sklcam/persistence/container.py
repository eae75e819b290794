"""The archive that an estimator is in: read only if it is sound.

It is a zip archive without compression, of two members, that ends with a checksum.
"""

from __future__ import annotations

import hashlib
import os
import textwrap
import zipfile
from typing import BinaryIO

import safetensors.torch
from torch import Tensor

from sklcam.persistence.errors import PersistenceError

_MEMBERS = ("estimator.json", "weights.safetensors")
LARGEST_JSON = 2**25
# Values in the JSON: each takes up to a hundred bytes once it is read.
MOST_VALUES = 2**21
_DIGEST = "sha256:"
_TRAILER = len(_DIGEST) + 64


def write_archive(file: BinaryIO, text: bytes, tensors: dict[str, Tensor]) -> None:
    """Write the two members, and the checksum behind them."""
    try:
        weights = safetensors.torch.save(tensors)
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise PersistenceError(f"A tensor is of a kind that files do not hold: {error}") from error
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = f"{_DIGEST}{'0' * 64}".encode()
        _write_member(archive, _MEMBERS[0], text)
        _write_member(archive, _MEMBERS[1], weights)
    digest = _digest(file, file.seek(0, os.SEEK_END))
    file.seek(-64, os.SEEK_END)
    file.write(digest.encode())


def check_json(text: bytes) -> None:
    """Refuse a JSON that would take much more memory than a file should, before it is parsed."""
    n_values = text.count(b",") + text.count(b"[") + text.count(b"{")
    if len(text) > LARGEST_JSON or n_values > MOST_VALUES:
        raise PersistenceError(
            f"All but the arrays takes {len(text)} bytes and {n_values} values, and more than "
            f"{LARGEST_JSON} or {MOST_VALUES} are refused; is the history very long, or a list of "
            "numbers not an array?"
        )


def _write_member(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # the same bytes at any time
    member.create_system = 3
    member.external_attr = 0o644 << 16
    archive.writestr(member, data)


def _digest(file: BinaryIO, size: int) -> str:
    """Return the SHA-256 of all but the digest at the end."""
    file.seek(0)
    found = hashlib.sha256()
    left = size - 64
    while left > 0:
        block = file.read(min(left, 2**20))
        if not block:
            break
        found.update(block)
        left -= len(block)
    return found.hexdigest()


def read_archive(file: BinaryIO, name: str) -> tuple[bytes, bytes]:
    """Return the two members, once the file has been found whole and of the expected form."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(30 + len(_MEMBERS[0]))
    begins = head[:4] == b"PK\x03\x04" and head[30:] == _MEMBERS[0].encode()
    file.seek(max(0, size - _TRAILER))
    trailer = file.read(_TRAILER)
    ends = trailer.startswith(_DIGEST.encode())
    if not begins and not ends:
        raise PersistenceError(f"{name!r} is not a file that sklcam.save has written.")
    if not begins or not ends or trailer[-64:] != _digest(file, size).encode():
        raise PersistenceError(
            f"{name!r} is damaged or cut off: its checksum is not that of its content. Copy it "
            "again, or save the estimator again."
        )
    try:
        with zipfile.ZipFile(file) as archive:
            _check_members(archive.infolist(), size)
            text, weights = (archive.read(member) for member in _MEMBERS)
            return text, weights
    except PersistenceError as error:
        raise PersistenceError(
            f"{name!r} is not of the form that sklcam.save writes: {error}"
        ) from None
    except Exception as error:  # zipfile meets damage with whatever it runs into
        raise PersistenceError(f"{name!r} is no sound archive: {error}") from error


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    names = [member.filename for member in members]
    if tuple(names) != _MEMBERS:
        raise PersistenceError(
            f"it holds {textwrap.shorten(repr(names), 200)} in place of {list(_MEMBERS)}."
        )
    for member in members:
        # Nothing is compressed, so that nothing can be larger than the file.
        is_plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
        if not is_plain or not member.compress_size == member.file_size <= size:
            raise PersistenceError(
                f"{member.filename} is compressed, encrypted or of a false size."
            )
    if members[0].file_size > LARGEST_JSON:
        raise PersistenceError(
            f"{members[0].filename} has {members[0].file_size} bytes; more than {LARGEST_JSON} "
            "are refused."
        )
