"""Attacks on the folder of a teacher cache: damage, edits, and files of other caches. Each says whether it changed anything."""

from __future__ import annotations

import json
import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from kdplug.engine.cache import folder as cache_folder

Random = random.Random
Attack = Callable[[Random, Path, Path], bool]


def files(folder: Path, ending: str = "") -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name.endswith(ending))


def flip(rng: Random, folder: Path, other: Path) -> bool:
    """One bit of one file."""
    file = rng.choice(files(folder))
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return True


def overwrite(rng: Random, folder: Path, other: Path) -> bool:
    """A run of bytes of one file."""
    file = rng.choice(files(folder))
    content = bytearray(file.read_bytes())
    start = rng.randrange(len(content))
    stop = min(start + rng.randint(2, 40), len(content))
    content[start:stop] = rng.randbytes(stop - start)
    return changed(file, bytes(content))


def cut(rng: Random, folder: Path, other: Path) -> bool:
    """The end of a file, or all of it."""
    file = rng.choice(files(folder))
    content = file.read_bytes()
    file.write_bytes(content[: rng.choice([0, rng.randrange(len(content)), len(content) - 1])])
    return True


def lengthen(rng: Random, folder: Path, other: Path) -> bool:
    """Bytes after the end of a file."""
    file = rng.choice(files(folder))
    return changed(file, file.read_bytes() + rng.choice([b"\0", b"}", b'{"a": 1}', rng.randbytes(50)]))


def edit(rng: Random, folder: Path, other: Path) -> bool:
    """One value of a JSON file, as a person or a script would change it."""
    file = rng.choice(files(folder, ".json"))
    tree = json.loads(file.read_bytes())
    holder, key = rng.choice(list(places(tree)))
    before = json.dumps(tree)
    match rng.randrange(4):
        case 0:
            del holder[key]
        case 1:
            holder[key] = other_value(rng, holder[key])
        case 2:
            holder[key] = rng.choice(
                [None, -1, 0, 2.5, 10**12, "x", [], {}, [1], {"a": 1}, True, float("nan"), "9" * 99]
            )
        case 3 if isinstance(holder, dict):
            holder[f"{key}+"] = holder.pop(key)
        case _:
            return False
    if json.dumps(tree) == before:
        return False
    file.write_text(json.dumps(tree, indent=1))
    return True


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Each value in a tree of plain data, as the container and the key that hold it."""
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from places(tree[key])


def other_value(rng: Random, value: Any) -> Any:
    """A value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + rng.choice([-1, 1, 2, 1000])
    if value in ("float64", "float32", "float16", "int64", "bool"):
        return rng.choice(["float32", "float16", "bfloat16", "int64", "save", "nn"])
    return value[::-1] if isinstance(value, (str, list)) and len(value) > 1 else [value]


def relabel(rng: Random, folder: Path, other: Path) -> bool:
    """Numbers, dtypes and names in the header of a shard."""
    file = rng.choice(files(folder, ".safetensors"))
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    old, new = rng.choice(
        [(b"F64", b"I64"), (b"F64", b"F16"), (b"F32", b"I32"), (b"I64", b"F64"), (b"[14", b"[41"), (b"[0,", b"[8,")]
    )
    return changed(file, content[:8] + header.replace(old, new, 1) + content[8 + length :])


def forge_length(rng: Random, folder: Path, other: Path) -> bool:
    """The length of a shard's header, which a reader may allocate."""
    file = rng.choice(files(folder, ".safetensors"))
    content = file.read_bytes()
    return changed(file, rng.choice([2**40, 2**63 - 1, 2**64 - 1, 0, 99_000_000]).to_bytes(8, "little") + content[8:])


def take(rng: Random, folder: Path, other: Path) -> bool:
    """A file of another teacher's cache of the same data."""
    name = rng.choice(files(folder)).name
    return changed(folder / name, (other / name).read_bytes())


def take_pair(rng: Random, folder: Path, other: Path) -> bool:
    """A shard of another teacher's cache of the same data, with its note."""
    name = rng.choice(files(folder, ".safetensors")).stem
    before = (folder / f"{name}.safetensors").read_bytes()
    for ending in (".json", ".safetensors"):
        shutil.copy(other / f"{name}{ending}", folder / f"{name}{ending}")
    return before != (folder / f"{name}.safetensors").read_bytes()


def exchange(rng: Random, folder: Path, other: Path) -> bool:
    """Two shards of one cache: both files of each, or one."""
    one, two = rng.sample(files(folder, ".safetensors"), 2)
    for ending in rng.choice([(".safetensors",), (".json",), (".safetensors", ".json")]):
        first, second = one.with_suffix(ending), two.with_suffix(ending)
        held = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(held)
    return True


def copy_over(rng: Random, folder: Path, other: Path) -> bool:
    """A file of this cache under the name of another."""
    one, two = rng.sample(files(folder), 2)
    return changed(two, one.read_bytes())


def lose(rng: Random, folder: Path, other: Path) -> bool:
    """Files, as where a copy was interrupted. A cache without ``origin.json`` is one that a run filled."""
    names = [file for file in files(folder) if file.name != "origin.json"]
    for file in rng.sample(names, rng.randint(1, len(names) - 1)):
        file.unlink()
    return True


def replace_kind(rng: Random, folder: Path, other: Path) -> bool:
    """Something that is no plain file in the place of one, or JSON that no parser likes."""
    file = rng.choice([file for file in files(folder) if file.name != "origin.json"])
    file.unlink()
    match rng.randrange(7):
        case 0:
            file.mkdir()
        case 1:
            file.symlink_to(file.name)
        case 2:
            file.symlink_to(folder / "nowhere")
        case 3:
            os.mkfifo(file)
        case 4:
            file.write_bytes(b"[" * 200_000)
        case 5:
            file.write_bytes(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
        case 6:
            file.symlink_to(rng.choice([one for one in files(other) if one.suffix == file.suffix]))
    return True


def changed(file: Path, content: bytes) -> bool:
    if content == file.read_bytes():
        return False
    file.write_bytes(content)
    return True


ATTACKS: tuple[Attack, ...] = (
    flip,
    overwrite,
    cut,
    lengthen,
    edit,
    edit,
    relabel,
    forge_length,
    take,
    take_pair,
    exchange,
    copy_over,
    lose,
    replace_kind,
)


def forge(rng: Random, folder: Path, other: Path) -> bool:
    """A change of plain data or of a shard's tensors, after which every digest and checksum is computed again."""
    if rng.random() < 0.5:
        found = edit(rng, folder, other)
    else:
        file = rng.choice(files(folder, ".safetensors"))
        tensors = load(file.read_bytes())
        name = rng.choice(sorted(tensors))
        changed_tensor = other_tensor(rng, tensors.pop(name))
        file.write_bytes(save(tensors if changed_tensor is None else {**tensors, name: changed_tensor}))
        found = True
    return found and reseal(folder)


def other_tensor(rng: Random, tensor: torch.Tensor) -> torch.Tensor | None:
    """A tensor of another shape, dtype or content, or none."""
    match rng.randrange(6):
        case 0:
            return tensor[:-1].clone()
        case 1:
            return torch.cat([tensor, tensor])
        case 2:
            return tensor.to(rng.choice([torch.float32, torch.int8, torch.bool, torch.float64]))
        case 3:
            return tensor.reshape(-1)
        case 4 if tensor.dtype == torch.int64 and tensor.numel():
            found = tensor.clone()
            found.view(-1)[rng.randrange(found.numel())] = rng.choice([-1, 0, 7, 10**12, 2**62])
            return found
        case _:
            return None


def reseal(folder: Path) -> bool:
    """Whether digests and checksums could be put onto what lies in ``folder``."""
    manifest = sealed(folder / "manifest.json", {})
    for file in files(folder, ".safetensors"):
        content = file.read_bytes()
        try:
            content = save(load(content), {"manifest": manifest})
        except SafetensorError:
            return False
        file.write_bytes(content)
        sealed(file.with_suffix(".json"), {"bytes": len(content), "crc32": zlib.crc32(content), "manifest": manifest})
    sealed(folder / "origin.json", {"manifest": manifest})
    return True


def sealed(file: Path, more: dict[str, Any]) -> str:
    """The digest of a JSON file after ``more`` was put into it."""
    data = {key: value for key, value in json.loads(file.read_bytes()).items() if key != "digest"}
    content = cache_folder._sealed({**data, **more})
    file.write_bytes(content)
    return cache_folder._digest_of(content)
