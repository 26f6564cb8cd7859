"""A teacher cache on disk: memory-mapped shards, each complete or absent, and a manifest of their inputs.

Every JSON file starts with a digest of its remaining content, and every file names the digest of its manifest, so
damage, edits and files of another cache are detected before anything is used. The digests detect accidents and mix-ups.
They are not signatures, and a forger can compute them. Nothing that is read is ever executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdplug.engine.cache.coding import Shared
from kdplug.engine.cache.layout import Layout, ShardPlan
from kdplug.engine.cache.shard import NOTHING, CodingStats, MappedFile, Shard
from kdplug.errors import RunError

_FORMAT = 2
_MANIFEST = "manifest.json"
_SHARED = "shared"
_SHARD = re.compile(r"shard-(\d{5,})\.json")

ORIGIN = "origin.json"
"""The file in which a recipe records the teacher of its cache."""

TEACHER = "teacher"
"""The folder of a teacher that was trained for the cache."""

_CHUNK = 1 << 22
_LARGEST_JSON = 1 << 28
_DIGEST = re.compile(rb'\{"digest": "([0-9a-f]{32})"')

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The inputs of a cache (``fingerprint``), the division of its examples into shards, and the layout of the outputs.

    ``shared`` is true if the codec stores tensors once for all examples.
    """

    extent: ShardPlan
    fingerprint: dict[str, Any]
    layout: Layout
    shared: bool


@dataclass(frozen=True, slots=True)
class Note:
    """The record of a complete file: its manifest's digest, its name, size and checksum, and its contents."""

    manifest: str
    part: str
    bytes: int
    crc32: int
    examples: int = 0
    tally: CodingStats = NOTHING


_MANIFESTS = TypeAdapter(Manifest)
_NOTES = TypeAdapter(Note)


class CacheFolder:
    """``manifest.json``, and for each shard ``shard-00000.safetensors`` with its record ``shard-00000.json``.

    Tensors that a codec stores once for all examples are in ``shared.safetensors``. Call ``manifest`` or ``begin``
    before reading or writing shards.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = ""

    def manifest(self) -> Manifest | None:
        """Return the manifest that ``begin`` wrote, or ``None`` if there is none.

        Raises: ``RunError`` for a manifest that is damaged, edited, or of another format.
        """
        file = self.path / _MANIFEST
        if not _is_file(file):
            return None
        again = f"Restore {_MANIFEST}, or delete {self.path} to run the teacher again"
        content = _read_sealed(file, again)
        with _reading(file, again):
            written = from_json(content).get("format")
            if written != _FORMAT:
                raise RunError(
                    f"{file} has cache format {written}, but this kdplug reads format {_FORMAT}. Use the version of kdplug "
                    f"that wrote the cache, or delete {self.path} to run the teacher again"
                )
            found = _MANIFESTS.validate_json(content, strict=True)
        self._digest = _digest_of(content)
        return found

    def check_free(self) -> None:
        """Raise ``RunError`` if the path cannot be made a folder, or holds other files and no manifest."""
        if "\0" in str(self.path):
            raise RunError(f"{str(self.path)!r} is not a valid folder name: it contains NUL. Choose another folder")
        with _reading(self.path):
            there = next(
                path for path in (self.path, *self.path.absolute().parents) if path.exists() or path.is_symlink()
            )
            if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
                raise RunError(
                    f"{there} is not a writable folder, so the teacher cache cannot be written there. Choose another "
                    "folder"
                )
            files = sorted(self.path.iterdir()) if self.path.is_dir() else []
        strangers = [file.name for file in files if file.name not in (ORIGIN, TEACHER) and not file.match(".*.tmp")]
        if _MANIFEST in strangers:
            raise RunError(
                f"{self.path} holds a {_MANIFEST} that is not a file, or did not exist when this run started: another "
                "process may be building a cache in this folder. Start again once no other process writes to it, or choose "
                "another folder"
            )
        if strangers:
            raise RunError(
                f"{self.path} holds {strangers[0]!r} and no {_MANIFEST}, so it is not a teacher cache. Choose an "
                "empty folder"
            )

    def begin(self, manifest: Manifest) -> None:
        """Write the manifest, whose digest every later file records.

        Raises: ``RunError`` if the folder cannot be written, or holds other files.
        """
        with _writing(self.path):
            self.check_free()
            self.path.mkdir(parents=True, exist_ok=True)
            for leftover in self.path.glob(".*.tmp"):
                leftover.unlink()
            content = _sealed({"format": _FORMAT, **asdict(manifest)})
            _replace(self.path / _MANIFEST, content)
            self._digest = _digest_of(content)

    def has(self, place: int) -> bool:
        """Return whether a shard is complete."""
        return _is_file(self._note(_name(place)))

    def written(self, count: int) -> list[int]:
        """Return which of the first ``count`` shards are complete."""
        with _reading(self.path):
            found = (int(match[1]) for file in self.path.iterdir() if (match := _SHARD.fullmatch(file.name)))
            return sorted(place for place in found if place < count and self.has(place))

    def write(self, place: int, shard: Shard) -> None:
        """Write a shard, then its record once the shard is on disk.

        Raises: ``RunError`` if that fails, such as on a full disk; shards that were written before stay.
        """
        self._put(_name(place), shard.tensors(), len(shard.digests), shard.tally)

    def read(self, place: int, start: int) -> Shard:
        """Return a shard, with its tensors memory-mapped.

        Raises: ``RunError`` for a file that is missing, damaged, or of another cache.
        """
        name, note = _name(place), self.note(place)
        tensors, mapped = self._verified(name, note)
        with _reading(mapped.path, self._again(name)):
            shard = Shard.from_tensors(start, tensors, note.tally, mapped)
        if len(shard.digests) != note.examples:
            raise RunError(
                f"{mapped.path} holds {len(shard.digests)} examples instead of {note.examples}. {self._again(name)}"
            )
        return shard

    def note(self, place: int | None) -> Note:
        """Return the record of a shard, or of the shared tensors (``None``), checked against manifest and file size.

        Raises: ``RunError`` for a record that is damaged, of another cache or of another shard, and for a file of
        another size.
        """
        name = _SHARED if place is None else _name(place)
        file = self._note(name)
        content = _read_sealed(file, self._again(name))
        with _reading(file, self._again(name)):
            note = _NOTES.validate_json(content, strict=True)
        if note.manifest != self._digest:
            raise self._mixed(file, self._again(name))
        if note.part != name:
            raise RunError(f"{file} is a copy of the record of {note.part}, under another name. {self._again(name)}")
        self._check_size(name, note)
        return note

    def write_shared(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors that are stored once for all examples, if any.

        Raises: ``RunError`` if that fails.
        """
        if tensors:
            self._put(_SHARED, tensors)

    def has_shared(self) -> bool:
        """Return whether the shared tensors are complete."""
        return _is_file(self._note(_SHARED))

    def read_shared(self) -> Shared:
        """Return the tensors that are stored once for all examples.

        Raises: ``RunError`` for a file that is missing, damaged, or of another cache.
        """
        return Shared(*self._verified(_SHARED, self.note(None)))

    def write_origin(self, data: Mapping[str, Any]) -> None:
        """Write ``origin.json`` of a complete cache.

        Raises: ``RunError`` if that fails.
        """
        manifest = self.manifest()
        assert manifest is not None
        with _writing(self.path):
            _replace(self.path / ORIGIN, _sealed({"manifest": self._digest, **data}))

    def read_provenance(self) -> dict[str, Any] | None:
        """Return the data of ``origin.json``, or ``None`` if there is no such file.

        Raises: ``RunError`` for a file that is damaged or of another cache.
        """
        file = self.path / ORIGIN
        if not _is_file(file):
            return None
        again = f"Run kdplug cache RECIPE --out {self.path} to write {ORIGIN} again"
        content = _read_sealed(file, again)
        with _reading(file, again):
            found: dict[str, Any] = from_json(content)
        if self.manifest() is None or found.get("manifest") != self._digest:
            raise self._mixed(file, again)
        return found

    def _put(self, name: str, tensors: Mapping[str, Tensor], examples: int = 0, tally: CodingStats = NOTHING) -> None:
        assert self._digest, "the manifest must be read or written first"
        content = save(dict(tensors), {"manifest": self._digest})  # one key: safetensors writes several in any order
        note = Note(self._digest, name, len(content), zlib.crc32(content), examples, tally)
        with _writing(self.path):
            _replace(self._file(name), content)
            _replace(self._note(name), _sealed(asdict(note)))

    def _verified(self, name: str, note: Note) -> tuple[dict[str, Tensor], MappedFile]:
        """Return the tensors of a file, memory-mapped after every byte of it was checked."""
        file, again = self._file(name), self._again(name)
        with _reading(file, again):
            mapped = MappedFile.of(file)
            if _checksum(file) != note.crc32:
                raise RunError(f"{file} is damaged: its checksum does not match. {again}")
            with safe_open(file, framework="pt") as opened:
                about = opened.metadata() or {}
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  not a mapping
            if MappedFile.of(file) != mapped:
                raise RunError(
                    f"{file} was replaced while it was read. Start again once no process writes to {self.path}"
                )
        if about.get("manifest") != self._digest:
            raise self._mixed(file, again)
        return tensors, mapped

    def _check_size(self, name: str, note: Note) -> None:
        file, again = self._file(name), self._again(name)
        with _reading(file, again):
            size = file.stat().st_size
        if size != note.bytes:
            raise RunError(f"{file} has {size} bytes, but {note.bytes} were written. {again}")

    def _mixed(self, file: Path, again: str) -> RunError:
        return RunError(
            f"{file} belongs to a different cache from the {_MANIFEST} next to it: one of them was replaced. Restore "
            f"the files of one cache, or {again[:1].lower()}{again[1:]}"
        )

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    def _note(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def _again(self, name: str) -> str:
        return f"Delete {self._note(name).name} to run the teacher for this part again"


def _name(place: int) -> str:
    return f"shard-{place:05d}"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write the teacher cache {folder}: {error.strerror or error}") from error


@contextmanager
def _reading(file: Path, again: str = "") -> Iterator[None]:
    """Raise ``RunError`` for errors of the system, safetensors or a parser; ``again`` explains how to fix them."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        raise RunError(f"{file} is damaged: {path or 'its content'}: {first['msg']}. {again}") from error
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RunError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        raise RunError(f"cannot read {file}: {reason}. {again}".rstrip(". ")) from error


def _is_file(file: Path) -> bool:
    with _reading(file):
        return file.is_file()


def _sealed(data: Mapping[str, Any]) -> bytes:
    """Return ``data`` as JSON whose first key is a digest of the rest."""
    rest = b",\n" + json.dumps(data, indent=1).encode()[1:].lstrip()
    return b'{"digest": "' + _hash(rest) + b'"' + rest


def _read_sealed(file: Path, again: str) -> bytes:
    """Return the bytes of a JSON file after checking its digest.

    Raises: ``RunError`` for a file that kdplug did not write, or that was changed since.
    """
    with _reading(file, again):
        found = file.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_JSON:
            size = f"has {found.st_size:,} bytes, more than {_LARGEST_JSON:,}"
            reason = size if stat.S_ISREG(found.st_mode) else "is not a regular file"
            raise RunError(f"{file} was not written by kdplug: it {reason}. {again}")
        content = file.read_bytes()
    match = _DIGEST.match(content)
    if match is None:
        raise RunError(
            f"{file} has no digest: it was damaged or edited, or another version of kdplug wrote it. {again}"
        )
    if match[1] != _hash(content[match.end() :]):
        raise RunError(f"{file} was damaged or edited: its digest does not match its content. {again}")
    return content


def _digest_of(content: bytes) -> str:
    match = _DIGEST.match(content)
    assert match is not None
    return match[1].decode()


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()


def _checksum(file: Path) -> int:
    found = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return found


def _replace(target: Path, content: bytes) -> None:
    """Write a file completely to disk under a temporary name, then rename it."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as stream:  # "x": never write through an existing link
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
