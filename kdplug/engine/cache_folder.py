"""A teacher cache on disk: memory-mapped shards, each whole or not at all, and a manifest that says what they are of."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from kdplug.engine.cache_shard import Shard
from kdplug.engine.cache_tally import Tally
from kdplug.errors import RunError
from kdplug.host.bounded_json import read_json

_FORMAT = 1
_MANIFEST = "manifest.json"
_SHARED = "shared"

ORIGIN = "origin.json"
"""What a recipe says of the cache that it made."""

TEACHER = "teacher"
"""The folder of a teacher that was fitted for the cache."""

_CHUNK = 1 << 22


class CacheFolder:
    """``manifest.json``, and for each shard ``shard-00000.safetensors`` with ``shard-00000.json``, its size and checksum.

    What a codec keeps once for all is in ``shared.safetensors``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def manifest(self) -> dict[str, Any] | None:
        """What ``begin`` was given, ``None`` where nothing was begun.

        Raises: ``RunError`` for a damaged manifest, or one of another format.
        """
        file = self.path / _MANIFEST
        if not file.is_file():
            return None
        found = _read_json(file)
        if found.get("format") != _FORMAT:
            raise RunError(f"{file} is no teacher cache of format {_FORMAT}. {_anew(self.path)}")
        return found

    def check_free(self) -> None:
        """Raises: ``RunError`` where a folder without a manifest holds something else than what may lie there before."""
        files = self.path.iterdir() if self.path.is_dir() else ()
        if strangers := [
            file.name for file in files if file.name not in (ORIGIN, TEACHER) and not file.match(".*.tmp")
        ]:
            raise RunError(
                f"{self.path} holds {strangers[0]!r} and no {_MANIFEST}, so it is no teacher cache. Name a folder of its own"
            )

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Say what the shards will be of.

        Raises: ``RunError`` where the folder cannot be written, or holds something else.
        """
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for leftover in self.path.glob(".*.tmp"):
                leftover.unlink()
            self.check_free()
            _replace(self.path / _MANIFEST, json.dumps({"format": _FORMAT, **manifest}, indent=1).encode())

    def has(self, place: int) -> bool:
        """Whether a shard was written to its end."""
        return self._note(_name(place)).is_file()

    def write(self, place: int, shard: Shard) -> None:
        """Write a shard, and once it is on disk the note that it is there.

        Raises: ``RunError`` where that fails, as on a full disk; the shards before stay.
        """
        self._put(_name(place), shard.tensors(), {"examples": len(shard.digests), "tally": shard.tally.to_data()})

    def read(self, place: int, start: int) -> Shard:
        """A shard, its tensors mapped into memory and read when they are used.

        Raises: ``RunError`` for a file that is not, bit by bit, the one that was written.
        """
        name = _name(place)
        tensors, note = self._whole(name)
        with _reading(self._file(name)):
            shard = Shard.from_tensors(start, tensors, Tally.from_data(note["tally"]))
            if len(shard.digests) != note["examples"]:
                raise RunError(
                    f"{self._file(name)} holds {len(shard.digests)} examples instead of {note['examples']}. {self._again(name)}"
                )
        return shard

    def checked(self, place: int | None) -> dict[str, Any]:
        """The note of a shard, or of what is kept once (``None``): its size, checksum, examples and tally.

        Raises: ``RunError`` for a damaged note, and for a file of another size.
        """
        name = _SHARED if place is None else _name(place)
        note = _read_json(self._note(name))
        self._check_size(name, note)
        return note

    def write_shared(self, tensors: Mapping[str, Tensor]) -> None:
        """Write what is kept once for all, if there is anything.

        Raises: ``RunError`` where that fails.
        """
        if tensors:
            self._put(_SHARED, tensors, {})

    def has_shared(self) -> bool:
        """Whether that was written to its end."""
        return self._note(_SHARED).is_file()

    def read_shared(self) -> dict[str, Tensor]:
        """What is kept once for all.

        Raises: ``RunError`` for a file that is not the one that was written.
        """
        return self._whole(_SHARED)[0]

    def _put(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        content = save(dict(tensors))
        note = {"bytes": len(content), "crc32": zlib.crc32(content), **about}
        with _writing(self.path):
            _replace(self._file(name), content)
            _replace(self._note(name), json.dumps(note).encode())

    def _whole(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        file, note = self._file(name), _read_json(self._note(name))
        self._check_size(name, note)
        with _reading(file):
            if _checksum(file) != note["crc32"]:
                raise RunError(f"{file} is damaged: its checksum is not the one that was written. {self._again(name)}")
            return load_file(file), note

    def _check_size(self, name: str, note: Mapping[str, Any]) -> None:
        file = self._file(name)
        with _reading(file):
            size = file.stat().st_size
            if size != note["bytes"]:
                raise RunError(
                    f"{file} has {size} bytes and had {note['bytes']} when it was written. {self._again(name)}"
                )

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    def _note(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def _again(self, name: str) -> str:
        return f"Delete {self._note(name).name}, and the teacher is asked for this part again"


def _name(place: int) -> str:
    return f"shard-{place:05d}"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write the teacher cache {folder}: {error.strerror or error}") from error


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise RunError(f"cannot read {file}: {type(error).__name__}: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    with _reading(file):
        found = read_json(file)
        if not isinstance(found, dict):
            raise ValueError("it is no mapping")
        return found


def _checksum(file: Path) -> int:
    found = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return found


def _replace(target: Path, content: bytes) -> None:
    """Put a file in place that is on disk as a whole before it has its name."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _anew(path: Path) -> str:
    return f"Delete {path} to have the teacher asked anew"
