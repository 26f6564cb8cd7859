"""Checksums of the files in a folder, so that a damaged file is found before it is used."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path

from kdplug.errors import RunError
from kdplug.host.bounded_json import read_json

CHECKSUMS = "checksums.json"
"""The file that holds the size and the CRC-32 of every other file in its folder."""

SUMS = "SHA256SUMS"
"""The file with the SHA-256 of each file of a finished student, next to them, as ``sha256sum -c`` reads it."""

_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")

_CHUNK = 1 << 20


def write_checksums(folder: Path, files: Iterable[Path], flush: Callable[[Path], None] = lambda _: None) -> None:
    """Write the checksums of ``files`` in ``folder``, each of which goes through ``flush``, and so does the new file.

    A thread computes checksums while ``flush`` waits for the disk.
    """
    files = list(files)
    with ThreadPoolExecutor(max_workers=1) as pool:
        found = {file.name: pool.submit(_measure, file) for file in files}
        for file in files:
            flush(file)
    content = {name: one.result() for name, one in found.items()}
    (folder / CHECKSUMS).write_text(json.dumps(content, indent=1), encoding="utf-8")
    flush(folder / CHECKSUMS)


def damage(folder: Path, names: Iterable[str] = (), *, only: bool = False) -> list[str]:
    """What is wrong with the files of ``folder``, one phrase for each; empty where all are as they were written.

    ``names`` are files that must have a checksum; with ``only``, no other file is checked. A file without a checksum that
    is not among them is ignored.
    """
    if not (folder / CHECKSUMS).is_file():
        return [f"{CHECKSUMS} is missing"]
    try:
        content = read_json(folder / CHECKSUMS)
        expected = {str(name): (int(one["bytes"]), int(one["crc32"])) for name, one in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{CHECKSUMS} is damaged ({type(error).__name__}: {error})"]
    wanted = dict.fromkeys([*names, *(() if only else expected)])
    return [phrase for name in wanted if (phrase := _damage(folder / name, expected.get(name)))]


def check_file(file: Path) -> None:
    """Compare a file with its checksum, where its folder has checksums: those of a checkpoint, or of a finished student.

    Raises: ``RunError`` that says what is wrong with the file.
    """
    if (file.parent / CHECKSUMS).is_file() and (found := damage(file.parent, [file.name], only=True)):
        raise RunError(f"{file.parent} is damaged: {found[0]}. Use another checkpoint or an undamaged copy")
    sums = file.parent / SUMS
    if not sums.is_file() or not file.is_file():
        return
    written = {match[2]: match[1] for line in _lines(sums) if (match := _SUM.fullmatch(line))}
    if file.name in written and sha256(file) != written[file.name]:
        raise RunError(
            f"{file} is damaged: it has another SHA-256 than {sums} says. Use an undamaged copy; if you changed the file, "
            f"delete {SUMS}"
        )


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def _damage(file: Path, expected: tuple[int, int] | None) -> str:
    if expected is None:
        return f"{CHECKSUMS} does not list {file.name}"
    if not file.is_file():
        return f"{file.name} is missing"
    size, checksum = expected
    try:
        if (there := file.stat().st_size) != size:
            return f"{file.name} has {there:,} bytes instead of {size:,}"
        return (
            "" if _measure(file)["crc32"] == checksum else f"{file.name} has another checksum than when it was written"
        )
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror or error})"


def _measure(file: Path) -> dict[str, int]:
    buffer, size, checksum = bytearray(_CHUNK), 0, 0
    view = memoryview(buffer)
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            checksum, size = zlib.crc32(view[:count], checksum), size + count
    return {"bytes": size, "crc32": checksum}
