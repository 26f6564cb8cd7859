"""Store nested plain data and tensors as JSON and safetensors. Nothing that is read back is executed."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdplug.errors import RunError
from kdplug.host.bounded_json import read_json

CHECKSUMS = "checksums.json"
"""The file with the size and CRC-32 of every other file in its folder."""

SUMS = "SHA256SUMS"
"""The file with the SHA-256 of each file of a finished student, in the format of ``sha256sum -c``."""

_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")

_CHUNK = 1 << 20


def write_checksums(folder: Path, files: Iterable[Path], flush: Callable[[Path], None] = lambda _: None) -> None:
    """Write the checksums of ``files`` in ``folder``. ``flush`` is called on each file, and on the checksum file.

    Checksums are computed in a thread while ``flush`` waits for the disk.
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
    """Return a phrase for each damaged file of ``folder``; empty if all are intact.

    ``names`` are files that must have a checksum; with ``only``, no other file is checked. Other files without a
    checksum are ignored.
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
    """Compare a file with its checksum, if the folder has checksums: those of a checkpoint, or of a finished student.

    Raises: ``RunError`` that describes the damage.
    """
    if (file.parent / CHECKSUMS).is_file() and (found := damage(file.parent, [file.name], only=True)):
        raise RunError(f"{file.parent} is damaged: {found[0]}. Use another checkpoint or an undamaged copy")
    sums = file.parent / SUMS
    if not file.is_file():
        return
    written = read_sums(file.parent)
    if file.name in written and sha256(file) != written[file.name]:
        raise RunError(
            f"{file} is damaged: its SHA-256 differs from the one in {sums}. Use an undamaged copy; if you changed the "
            f"file, delete {SUMS}"
        )


def read_sums(folder: Path) -> dict[str, str]:
    """Return the names and digests that the ``SHA256SUMS`` of a folder lists; without that file, none."""
    if not (folder / SUMS).is_file():
        return {}
    return {match[2]: match[1] for line in _lines(folder / SUMS) if (match := _SUM.fullmatch(line))}


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
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
        return "" if _measure(file)["crc32"] == checksum else f"{file.name} does not match its checksum"
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror or error})"


def _measure(file: Path) -> dict[str, int]:
    buffer, size, checksum = bytearray(_CHUNK), 0, 0
    view = memoryview(buffer)
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            checksum, size = zlib.crc32(view[:count], checksum), size + count
    return {"bytes": size, "crc32": checksum}


_TENSOR, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"
_SCALARS = (str, int, float, bool, type(None))


def write_archive(folder: Path, name: str, data: Any) -> None:
    """Write ``data`` as ``name.json`` and ``name.safetensors``.

    ``data`` consists of dicts, lists, tuples, numbers, strings, booleans, ``None`` and tensors, nested in any way.

    Raises: ``RunError`` with the path of any other object.
    """
    tensors = _Tensors()
    plain = _encode(data, name, tensors)
    save_file(tensors.by_key, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(plain), encoding="utf-8")


def read_archive(folder: Path, name: str) -> Any:
    """Return the data passed to ``write_archive``, bit-identical, with tensors on the CPU.

    Raises: ``RunError`` if a file is missing or damaged.
    """
    try:
        plain = read_json(folder / f"{name}.json")
        return _decode(plain, load_file(folder / f"{name}.safetensors"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(f"cannot read the checkpoint {folder / name}: {type(error).__name__}: {error}") from error


class _Tensors:
    """The tensors of an archive, on the CPU. Tensors that share memory are copied, since safetensors rejects them."""

    def __init__(self) -> None:
        self.by_key: dict[str, Tensor] = {}
        self._memories: set[int] = set()

    def add(self, value: Tensor) -> str:
        key, tensor = str(len(self.by_key)), value.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        if memory in self._memories:
            tensor = tensor.clone()
        self._memories.add(memory)
        self.by_key[key] = tensor
        return key


def _encode(value: Any, path: str, tensors: _Tensors) -> Any:
    if isinstance(value, Tensor):
        return {_TENSOR: tensors.add(value)}
    if isinstance(value, Mapping):
        items = [(key, _encode(inner, f"{path}.{key}", tensors)) for key, inner in value.items()]
        if all(isinstance(key, str) and not key.startswith("__") for key, _ in items):
            return dict(items)
        return {_ITEMS: [[_encode(key, path, tensors), inner] for key, inner in items]}
    if isinstance(value, tuple):
        return {_TUPLE: [_encode(inner, f"{path}.{place}", tensors) for place, inner in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(inner, f"{path}.{place}", tensors) for place, inner in enumerate(value)]
    if isinstance(value, _SCALARS):
        return value
    raise RunError(
        f"{path} holds a {type(value).__name__}, which cannot be saved: a checkpoint holds only tensors and plain data"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(_decode(inner, tensors) for inner in value[_TUPLE])
    if _ITEMS in value:
        return {_decode(key, tensors): _decode(inner, tensors) for key, inner in value[_ITEMS]}
    return {key: _decode(inner, tensors) for key, inner in value.items()}
