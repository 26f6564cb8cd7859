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

from kdplug.engine.cache_shard import Shard
from kdplug.errors import RunError

_FORMAT = 1
_MANIFEST = "manifest.json"
_CHUNK = 1 << 22


class CacheFolder:
    """``manifest.json``, and for each shard ``shard-00000.safetensors`` with ``shard-00000.json``, its size and checksum."""

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

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Say what the shards will be of.

        Raises: ``RunError`` where the folder cannot be written, or holds something else.
        """
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for leftover in self.path.glob(".*.tmp"):
                leftover.unlink()
            if strangers := [file.name for file in self.path.iterdir()]:
                raise RunError(
                    f"{self.path} holds {strangers[0]!r} and no {_MANIFEST}, so it is no teacher cache. Name a folder of its own"
                )
            _replace(self.path / _MANIFEST, json.dumps({"format": _FORMAT, **manifest}, indent=1).encode())

    def has(self, place: int) -> bool:
        """Whether a shard was written to its end."""
        return self._note(place).is_file()

    def write(self, place: int, shard: Shard) -> None:
        """Write a shard, and once it is on disk the note that it is there.

        Raises: ``RunError`` where that fails, as on a full disk; the shards before stay.
        """
        content = save(shard.tensors())
        note = {"bytes": len(content), "crc32": zlib.crc32(content), "examples": len(shard.digests)}
        with _writing(self.path):
            _replace(self._file(place), content)
            _replace(self._note(place), json.dumps(note).encode())

    def read(self, place: int, start: int) -> Shard:
        """A shard, its tensors mapped into memory and read when they are used.

        Raises: ``RunError`` for a file that is not, bit by bit, the one that was written.
        """
        file, note = self._file(place), _read_json(self._note(place))
        with _reading(file):
            size = file.stat().st_size
            if size != note["bytes"]:
                raise RunError(
                    f"{file} has {size} bytes and had {note['bytes']} when it was written. {self._again(place)}"
                )
            if _checksum(file) != note["crc32"]:
                raise RunError(f"{file} is damaged: its checksum is not the one that was written. {self._again(place)}")
            shard = Shard.from_tensors(start, load_file(file))
        if len(shard.digests) != note["examples"]:
            raise RunError(
                f"{file} holds {len(shard.digests)} examples instead of {note['examples']}. {self._again(place)}"
            )
        return shard

    def _file(self, place: int) -> Path:
        return self.path / f"shard-{place:05d}.safetensors"

    def _note(self, place: int) -> Path:
        return self._file(place).with_suffix(".json")

    def _again(self, place: int) -> str:
        return f"Delete {self._note(place).name}, and the next run asks the teacher for this shard again"


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
        found = json.loads(file.read_text(encoding="utf-8"))
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
