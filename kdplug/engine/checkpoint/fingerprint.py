"""Fingerprints of a run's data, so that no run is resumed with different data.

They are cheap to compute, even for millions of examples.
"""

from __future__ import annotations

import json
import math
import random
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, TensorDataset

from kdplug.contracts.task import FingerprintedDataset
from kdplug.engine.accumulation_batches import generators
from kdplug.engine.forward_state import random_state_kept
from kdplug.engine.hashing import code_digest, digest, text_digest
from kdplug.engine.multi_task import MultiTaskLoader
from kdplug.engine.parallel.fsdp import is_sharded
from kdplug.errors import RunError

UNKNOWN = "(unknown)"
"""Placeholder for a part of a fingerprint that cannot be computed. It matches everything."""

CONTENT = "content"
"""The key for the examples read: a digest, or digests by the number of examples covered."""

SHOWN_AS = "shown_as"
"""The key for the origin of the data, such as a file. It is not compared, but errors show it."""

HELD = "held_values"
"""The key for a digest of the values that a callable depends on. They may differ between the processes of a run."""

_CHOICE = ("indices", "weights", "replacement", "num_samples", "_num_samples")
"""The attributes of torch's samplers that determine which examples they draw."""

_SECONDS = 1.0
_GROUP = 16


def data_fingerprint(loader: Iterable[Any]) -> dict[str, Any]:
    """Return plain data that identifies how ``loader`` makes batches, and its examples. Random state is unchanged.

    An iterable that is neither a ``DataLoader`` nor a list of batches is identified by its class only, since reading it
    would consume it.
    """
    if isinstance(loader, MultiTaskLoader):
        return {
            "tasks": {task: data_fingerprint(one) for task, one in loader.loaders.items()},
            "postprocessors": {task: code_fingerprint(one) for task, one in loader.postprocessors.items()},
        }
    if isinstance(loader, (list, tuple)):
        return {"kind": "a list of batches", "batches": len(loader), CONTENT: _content(loader)}
    if not isinstance(loader, DataLoader):
        return {"kind": type(loader).__qualname__}
    return {
        "batch_size": loader.batch_size,
        "drop_last": loader.drop_last,
        "sampler": _order(loader.sampler),
        "batch_sampler": _order(loader.batch_sampler) if loader.batch_size is None else _name(loader.batch_sampler),
        "collate_fn": code_fingerprint(loader.collate_fn),
        **_workers(loader),
        **dataset_fingerprint(loader.dataset, loader),
    }


def _workers(loader: DataLoader[Any]) -> dict[str, Any]:
    """Return settings that determine when the loader draws random numbers, and which worker draws them for an example.

    Workers take indices ahead of the training, so a generator of the loader also depends on how many they take.
    """
    return {
        "num_workers": loader.num_workers,
        "persistent_workers": loader.persistent_workers,
        "prefetch_factor": loader.prefetch_factor if generators(loader) else None,
        "in_order": loader.in_order,
    }


def dataset_fingerprint(dataset: Any, loader: DataLoader[Any] | None = None) -> dict[str, Any]:
    """Return plain data that identifies the examples of ``dataset``.

    Tensors and arrays are read completely. If a dataset has a ``fingerprint()``, its result is used. Of any other
    dataset, examples are read by index for about a second, in an order spread over the dataset, each group with the
    same random seed. They are read in a worker process if ``loader`` has workers. If examples differ when they are read
    twice, or cannot be read by index, only the length is used.

    Raises: ``RunError`` for a ``fingerprint()`` that does not return plain data.
    """
    found: dict[str, Any] = {"kind": type(dataset).__qualname__}
    if isinstance(dataset, IterableDataset):
        return found
    try:
        found["examples"] = len(dataset)
    except TypeError:
        return found
    if isinstance(dataset, FingerprintedDataset) and callable(dataset.fingerprint):
        found["fingerprint"] = _plain(dataset)
    elif type(dataset) is TensorDataset:
        found[CONTENT] = tensor_fingerprint((str(place), one) for place, one in enumerate(dataset.tensors))
    elif type(dataset) in (Tensor, numpy.ndarray):
        found[CONTENT] = tensor_fingerprint([("", dataset)])
    else:
        found[CONTENT] = _content(dataset, loader)
    return found


def tensor_fingerprint(named: Iterable[tuple[str, Any]]) -> str:
    """Return a digest of names, dtypes, shapes and bytes of tensors and arrays.

    It is ``UNKNOWN`` if one has no plain bytes in this process, such as a sharded, quantized or ``meta`` tensor.
    """
    mark = 0
    for name, value in named:
        mark = zlib.crc32(f"{name} {getattr(value, 'dtype', '')} {tuple(getattr(value, 'shape', ()))};".encode(), mark)
        try:
            mark = zlib.crc32(_bytes(value), mark)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return UNKNOWN
    return f"{mark:08x}"


def code_fingerprint(function: Any) -> Any:
    """Return a digest of a callable's code, and one of everything else its result depends on; ``None`` for ``None``.

    The second one, ``held_values``, covers closures, default arguments, global variables and helper functions, and may
    differ between processes. Attributes of objects are in neither. Builtins and classes are identified by name only.
    """
    code = _code(function)
    if function is None or (isinstance(function, type) or type(function) is BuiltinFunctionType):
        return code
    try:
        held = code_digest(function, with_state=False)
    except RunError:  # a tensor on the meta device has no values
        held = UNKNOWN
    return {"code": code, HELD: held}


def described(value: Any) -> Any:
    """Return ``value`` as plain data: numbers and text unchanged, callables and tensors as digests, others by class."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): described(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(one) for one in value]
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 and not is_sharded(value) else tensor_fingerprint([("", value)])
    return code_fingerprint(value) if callable(value) else type(value).__qualname__


def _code(function: Any) -> str | None:
    """Return a digest of the code of a callable and of what it wraps, or its name if it is not written in Python."""
    if function is None:
        return None
    if isinstance(function, partial):
        return _code(function.func)
    target = function.__func__ if isinstance(function, MethodType) else function
    if not isinstance(target, (FunctionType, type)) and isinstance(vars(type(target)).get("__call__"), FunctionType):
        target = type(target).__call__
    if not isinstance(target, FunctionType):
        own = str(getattr(target, "__qualname__", type(target).__qualname__))
    else:
        own = code_digest(target.__code__)
    wrapped = getattr(function, "__wrapped__", None)
    return own if wrapped is None else text_digest([own, _code(wrapped)])


def _order(sampler: Any) -> Any:
    if isinstance(sampler, (list, tuple, range)):
        return text_digest(list(sampler))
    name = _name(sampler)
    own = getattr(sampler, "__dict__", {})
    held = {key: _choice(own[key]) for key in _CHOICE if key in own}
    if isinstance(sampler, BatchSampler):
        held |= {"sampler": _order(sampler.sampler), "batch_size": sampler.batch_size, "drop_last": sampler.drop_last}
    return {"kind": name, **held} if held else name


def _choice(value: Any) -> Any:
    return text_digest(list(value)) if isinstance(value, (list, tuple, range)) else described(value)


def _name(sampler: Any) -> str | None:
    return None if sampler is None else type(sampler).__qualname__


def _plain(dataset: FingerprintedDataset) -> Any:
    found = dataset.fingerprint()
    try:
        return json.loads(json.dumps(found))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"{type(dataset).__qualname__}.fingerprint() must return plain data (text, numbers, lists, mappings): "
            f"{error}"
        ) from error


def _bytes(value: Any) -> Any:
    if isinstance(value, Tensor):
        if is_sharded(value):
            raise TypeError("each process holds a different part of it")
        return value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    if isinstance(value, numpy.ndarray) and value.dtype != object:
        return numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8)
    return text_digest(value).encode()


def _content(dataset: Any, loader: DataLoader[Any] | None = None) -> Any:
    """Return digests of the first 16, 32, 64, … examples read; runs compare the largest number that both reached."""
    found: dict[str, str] = {}
    count, read, mark, first = len(dataset), 0, 0, None
    deadline = time.monotonic() + _SECONDS
    try:
        with random_state_kept():
            for marks in _read(dataset, _groups(count), loader):
                if first is None:
                    first = marks
                    continue
                if not read and marks != first:
                    return UNKNOWN  # random, from a generator that is not seeded here
                read += len(marks)
                mark = zlib.crc32(numpy.asarray(marks, dtype=numpy.int64).tobytes(), mark)
                is_late = time.monotonic() > deadline
                if is_late or read == count or read.bit_count() == 1:
                    found[str(read)] = f"{mark:08x}"
                if is_late:
                    break
    except Exception:  # datasets without integer keys may raise any exception
        return UNKNOWN
    return found


def _groups(count: int) -> Iterator[list[int]]:
    """Yield every index once in groups, the first ones spread over the dataset. The first group is yielded twice."""
    stride = max(1, round(count * 0.618))
    while math.gcd(stride, count) > 1:
        stride += 1
    for start in (0, *range(0, count, _GROUP)):
        yield [place * stride % count for place in range(start, min(start + _GROUP, count))]


def _read(dataset: Any, groups: Iterable[list[int]], loader: DataLoader[Any] | None) -> Iterator[list[int]]:
    """Yield the digests of the examples of each group.

    A dataset that is read by workers is also read in a worker here, so that files that it opens are not inherited by
    the workers of the run.
    """
    if loader is None or not loader.num_workers:
        return map(_Marks(dataset).__getitem__, groups)
    return iter(
        DataLoader(
            _Marks(dataset),
            batch_size=None,
            sampler=groups,
            collate_fn=list,
            num_workers=1,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=torch.Generator(),
        )
    )


class _Marks(Dataset[list[int]]):
    """Maps groups of indices to digests of the examples at these indices."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, places: list[int]) -> list[int]:
        random.seed(0)
        numpy.random.seed(0)  # noqa: NPY002  the generators that a dataset may use
        torch.default_generator.manual_seed(0)  # torch.manual_seed is far slower: it looks for accelerators
        several: Callable[[list[int]], list[Any]] | None = getattr(self.dataset, "__getitems__", None)
        items = several(places) if callable(several) else [self.dataset[place] for place in places]
        return [digest(item) for item in items]
