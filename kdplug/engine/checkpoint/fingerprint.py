"""Fingerprints of the data of a run: cheap for a million rows, so that no run is resumed over other data."""

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
from kdplug.engine.forward_state import random_state_kept
from kdplug.engine.hashing import code_digest, digest, text_digest
from kdplug.engine.multi_task import MultiTaskLoader
from kdplug.engine.parallel.fsdp import is_sharded
from kdplug.errors import RunError

UNKNOWN = "(unknown)"
"""Stands for a part of a fingerprint that cannot be computed. It equals everything."""

CONTENT = "content"
"""The key of what was read of the examples: a digest, or digests by the number of examples that they are of."""

HELD = "held_values"
"""The key of a digest of the values that a callable depends on. They may differ between the processes of a run."""

_CHOICE = ("indices", "weights", "replacement", "num_samples", "_num_samples")
"""The attributes of torch's samplers that say which examples they draw."""

_SECONDS = 1.0
_GROUP = 16


def data_fingerprint(loader: Iterable[Any]) -> dict[str, Any]:
    """How ``loader`` makes batches, and what its examples are; plain data. Random numbers are left as they were.

    Nothing but the class is known of an iterable that is neither a ``DataLoader`` nor a list of batches: to read it would be
    to use it up.
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
        **dataset_fingerprint(loader.dataset, loader),
    }


def dataset_fingerprint(dataset: Any, loader: DataLoader[Any] | None = None) -> dict[str, Any]:
    """What the examples of ``dataset`` are; plain data.

    Tensors and arrays are read whole. A dataset that has a ``fingerprint()`` is asked for it. Of any other one, examples
    are read by place for about a second, in an order that spreads them over the dataset, and each group with the same random
    seed. ``loader`` has the dataset read in a worker process if it has workers itself. A dataset whose examples differ
    when they are read twice is not fingerprinted beyond its length, nor is one that cannot be read by place.

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
    """A digest of tensors and arrays: names, dtypes, shapes and bytes. Unknown where one has no plain bytes in this process, as where it
    is sharded, quantized or on ``meta``.
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
    """A digest of the code of a callable, and one of all that its result depends on besides; ``None`` for none.

    The second one, ``held_values``, is of closures, default arguments, global variables and helper functions. It may differ
    between processes. The attributes of an object are in neither. Of a builtin or a class there is only the name.
    """
    code = _code(function)
    if function is None or (isinstance(function, type) or type(function) is BuiltinFunctionType):
        return code
    try:
        held = code_digest(function, with_state=False)
    except RunError:  # a tensor on the meta device, which has no values to compare
        held = UNKNOWN
    return {"code": code, HELD: held}


def described(value: Any) -> Any:
    """``value`` as plain data: numbers and text as they are, callables by their code, tensors by digest, others by class."""
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
    """A digest of the code of a callable and of what it wraps; the name where it is not written in Python."""
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
            f"{type(dataset).__qualname__}.fingerprint() must return plain data (text, numbers, lists, mappings): {error}"
        ) from error


def _bytes(value: Any) -> Any:
    if isinstance(value, Tensor):
        if is_sharded(value):
            raise TypeError("each process holds another part of it")
        return value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    if isinstance(value, numpy.ndarray) and value.dtype != object:
        return numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8)
    return text_digest(value).encode()


def _content(dataset: Any, loader: DataLoader[Any] | None = None) -> Any:
    """A digest of the first 16, 32, 64, … examples that are read: two runs compare the most that both had the time to read."""
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
                    return UNKNOWN  # drawn at random, from a generator of its own
                read += len(marks)
                mark = zlib.crc32(numpy.asarray(marks, dtype=numpy.int64).tobytes(), mark)
                is_late = time.monotonic() > deadline
                if is_late or read == count or read.bit_count() == 1:
                    found[str(read)] = f"{mark:08x}"
                if is_late:
                    break
    except Exception:  # whatever a dataset raises that has other keys than places
        return UNKNOWN
    return found


def _groups(count: int) -> Iterator[list[int]]:
    """Every place once, in groups whose first ones are spread over all places already. The first group comes twice."""
    stride = max(1, round(count * 0.618))
    while math.gcd(stride, count) > 1:
        stride += 1
    for start in (0, *range(0, count, _GROUP)):
        yield [place * stride % count for place in range(start, min(start + _GROUP, count))]


def _read(dataset: Any, groups: Iterable[list[int]], loader: DataLoader[Any] | None) -> Iterator[list[int]]:
    """The digests of the examples of each group.

    A dataset that is meant for workers is read in one: what it opens there is not inherited by those of the run.
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
    """Groups of places to digests of the examples at these places."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, places: list[int]) -> list[int]:
        random.seed(0)
        numpy.random.seed(0)  # noqa: NPY002  the generators that a dataset draws from
        torch.default_generator.manual_seed(0)  # torch.manual_seed takes far longer: it looks for accelerators
        several: Callable[[list[int]], list[Any]] | None = getattr(self.dataset, "__getitems__", None)
        items = several(places) if callable(several) else [self.dataset[place] for place in places]
        return [digest(item) for item in items]
