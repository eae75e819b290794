"""The archive that holds an estimator, which is read only if it is intact.

It is an uncompressed zip archive of two members, and ends with a checksum.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from typing import BinaryIO

import safetensors.torch
from torch import Tensor

from sklcam.persistence.errors import PersistenceError

_MEMBERS = ("estimator.json", "weights.safetensors")
_DIGEST = b"sha256:"
_TRAILER = len(_DIGEST) + 64

# These limits bound the memory that a file takes once it is read: about 250 bytes per container of
# the JSON, 60 per value and 1,000 per tensor.
LARGEST_JSON = 2**24
_MOST_CONTAINERS = 2**19
_MOST_VALUES = 2**20
_MOST_TENSORS = 2**17


def write_archive(file: BinaryIO, text: bytes, tensors: dict[str, Tensor]) -> None:
    """Write the two members, followed by the checksum."""
    check_json(text)
    try:
        weights = safetensors.torch.save(tensors)
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise PersistenceError(f"A file cannot hold a tensor of this kind: {error}") from error
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = _DIGEST + b"0" * 64
        _write_member(archive, _MEMBERS[0], text)
        _write_member(archive, _MEMBERS[1], weights)
    digest = _digest(file, file.seek(0, os.SEEK_END))
    file.seek(-64, os.SEEK_END)
    file.write(digest)


def check_json(text: bytes) -> None:
    """Refuse JSON that would take too much memory, before it is parsed."""
    n_containers, n_values = text.count(b"[") + text.count(b"{"), text.count(b",")
    is_small = len(text) <= LARGEST_JSON and n_values <= _MOST_VALUES
    if not is_small or n_containers > _MOST_CONTAINERS:
        raise PersistenceError(
            f"Apart from its tensors, the estimator takes {len(text)} bytes, {n_values} values and "
            f"{n_containers} lists, which is more than a file may hold. Turn long lists of numbers "
            "into arrays."
        )


def _write_member(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # the same bytes on every day
    member.create_system = 3
    member.external_attr = 0o644 << 16
    archive.writestr(member, data)


def _digest(file: BinaryIO, size: int) -> bytes:
    """Return the SHA-256 of all but the digest at the end."""
    file.seek(0)
    found = hashlib.sha256()
    for start in range(0, size - 64, 2**20):
        found.update(file.read(min(2**20, size - 64 - start)))
    return found.hexdigest().encode()


def read_archive(file: BinaryIO, name: str) -> tuple[bytes, dict[str, Tensor]]:
    """Return the JSON and the tensors, after checking that the file is complete and well formed."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    begins = file.read(4) == b"PK\x03\x04" and file.read(40)[26:] == _MEMBERS[0].encode()
    file.seek(max(0, size - _TRAILER))
    trailer = file.read(_TRAILER)
    ends = trailer.startswith(_DIGEST)
    if not begins and not ends:
        raise PersistenceError(f"{name!r} is not a file that sklcam.save has written.")
    if not begins or not ends or trailer[-64:] != _digest(file, size):
        raise PersistenceError(
            f"{name!r} is damaged or truncated: its checksum does not match its content. Copy it "
            "again, or save the estimator again."
        )
    try:
        with zipfile.ZipFile(file) as archive:
            _check_members(archive.infolist(), size)
            text = archive.read(_MEMBERS[0])
            check_json(text)
            return text, _read_tensors(archive.read(_MEMBERS[1]))
    except PersistenceError as error:
        raise PersistenceError(
            f"{name!r} does not have the form that sklcam.save writes: {error}"
        ) from None
    except Exception as error:  # zipfile raises errors of many kinds for damage
        raise PersistenceError(f"{name!r} is not a valid archive: {error}") from error


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    names = tuple(member.filename for member in members[:3])
    if names != _MEMBERS:
        raise PersistenceError(f"it holds {str(names)[:200]} in place of {list(_MEMBERS)}.")
    for member in members:
        # Nothing is compressed, so no member can be larger than the file.
        is_plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
        if not is_plain or not member.compress_size == member.file_size <= size:
            raise PersistenceError(
                f"{member.filename} is compressed, encrypted, or declares a wrong size."
            )
    if members[0].file_size > LARGEST_JSON:
        raise PersistenceError(
            f"{_MEMBERS[0]} has {members[0].file_size} bytes, and at most {LARGEST_JSON} are read."
        )


def _read_tensors(weights: bytes) -> dict[str, Tensor]:
    header = weights[8 : 8 + int.from_bytes(weights[:8], "little")]
    if header.count(b"{") > _MOST_TENSORS or len(header) > LARGEST_JSON:
        raise PersistenceError(
            f"it holds more than {_MOST_TENSORS} tensors, or its list of tensors is too long."
        )
    return safetensors.torch.load(weights)
