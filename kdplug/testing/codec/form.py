"""Tests of the tensors that a cache codec stores: their names, dtypes and shapes, on any device and in another process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kdplug.contracts.cache_codec import CacheCodec, Ragged
from kdplug.testing.codec.case import CodecCase, form_of
from kdplug.testing.codec.content import same
from kdplug.testing.codec.sample import at, tensors_of
from kdplug.testing.law import advise, broken

_CONSTRUCTORS: tuple[Any, ...] = (
    torch.arange,
    torch.empty,
    torch.eye,
    torch.full,
    torch.linspace,
    torch.ones,
    torch.rand,
    torch.randint,
    torch.randn,
    torch.randperm,
    torch.tensor,
    torch.zeros,
)
_STORE = "Return everything that decode needs as parts, or from shared"


class CodecFormLaws(CodecCase):
    """A cache splits parts into examples, writes them to a file, and reads them in another process."""

    def test_it_offers_all_that_a_cache_asks_for(self) -> None:
        """Catches a missing or misspelt method; a flag written as a method, which is always true."""
        codec = self.codec()
        lacking = [name for name in vars(CacheCodec) if not name.startswith("_") and not hasattr(codec, name)]
        if lacking:
            broken(f"is not a cache codec: it lacks {', '.join(lacking)}. Define every member of kdplug.CacheCodec")
        for name in ("uses_temperature", "takes_factored"):
            flag = getattr(codec, name)
            if not isinstance(flag, bool):
                broken(f"{name} must be True or False, got {flag!r}: use a class attribute or a property")

    def test_it_keeps_tensors_by_name(self) -> None:
        """Catches a list, one number for all items, counts that do not add up to the rows, a name with a slash."""
        codec = self.codec()
        given = self.given(codec)
        parts = self.keep(codec, given).parts
        if not isinstance(parts, Mapping) or not parts:
            broken("encode returned no parts: return a mapping with at least one tensor")
        for name, part in parts.items():
            _check_name("part", name)
            _check_part(name, part, self.items)
        for name, tensor in codec.shared(given).items():
            _check_name("shared part ", name)
            if not isinstance(tensor, Tensor):
                broken(f"shared part {name!r} must be a tensor, got {type(tensor).__name__}")

    def test_every_item_is_kept_in_the_same_form(self) -> None:
        """Catches a dtype chosen by a batch's largest id, a width equal to that of its widest item (use ``Ragged``)."""
        codec = self.codec()
        first = {name: form_of(part) for name, part in self.keep(codec, self.given(codec)).parts.items()}
        for items, size in ((1, 3.0), (2, 1e-3), (4, 40.0)):
            parts = self.keep(codec, self.given(codec, items, seed=items, size=size)).parts
            again = {name: form_of(part) for name, part in parts.items()}
            if again != first:
                name = next(name for name in (*first, *again) if first.get(name) != again.get(name))
                broken(
                    f"part {name!r} is {first.get(name, 'missing')} for some items and {again.get(name, 'missing')} "
                    "for others: they cannot be concatenated. Use one dtype and width for all batches, or kdplug.Ragged"
                )

    def test_another_process_reads_what_it_kept(self) -> None:
        """Catches state that ``decode`` needs from ``encode``; a dtype that files cannot hold; two names for one tensor."""
        codec = self.codec()
        given = self.given(codec)
        self.keep(codec, self.given(codec, seed=1, size=50.0))  # another batch
        trip, shared = self.trip(codec, given), self.shared(codec, given)
        self.keep(codec, self.given(codec, seed=1, size=50.0))
        parts = {
            name: Ragged(*_filed(part._asdict()).values()) if isinstance(part, Ragged) else _filed({name: part})[name]
            for name, part in trip.kept.parts.items()
        }
        try:
            found = self.read(self.codec(), parts, _filed(shared))
        except (AttributeError, KeyError) as error:
            broken(
                f"a new codec with the same settings cannot decode the parts: {type(error).__name__}: {error}. {_STORE}"
            )
        if not same(found, trip.found):
            broken(f"a new codec with the same settings decodes the parts to different logits. {_STORE}")

    @advise(
        "Return from shared only what settings or the teacher's head determine, and everything else as parts of the items"
    )
    def test_what_is_kept_once_does_not_depend_on_the_items(self) -> None:
        """Catches a codebook, a mean or a range of the first batch, which is then used to decode all other batches."""
        codec = self.codec()
        given = self.given(codec)
        first = tensors_of(codec.shared(given))
        again = tensors_of(self.codec().shared(at(given, [4, 1])))
        for name, tensor in first.items():
            if name not in again or not _equal(tensor, again[name]):
                broken(f"shared part {name!r} differs if it is computed from other items")

    @advise("Use x - y instead of x.sub_(y), or clone first")
    def test_its_inputs_are_not_modified(self) -> None:
        """Catches logits divided in place, which the loss of the same step then uses; parts unpacked in place."""
        codec = self.codec()
        given = self.given(codec)
        with _unchanged("the given", given):
            shared, kept = self.shared(codec, given), self.keep(codec, given)
        with _unchanged("part", kept.parts), _unchanged("shared part", shared):
            self.read(codec, kept.parts, shared)

    def test_it_works_on_any_device(self) -> None:
        """Catches ``torch.arange(n)`` without a device, which works until the teacher is on a GPU."""
        codec = self.codec()
        given = self.given(codec)
        with _Placed("shared"):
            shared = codec.shared(given)
        with _Placed("encode"):
            kept = self.keep(codec, given)
        with _Placed("decode"):
            self.read(codec, kept.parts, shared)
        if torch.accelerator.is_available():
            there = torch.accelerator.current_accelerator()
            assert there is not None
            found = self.trip(codec, given.to(there)).found
            if found.device.type != there.type:
                broken(f"decode returns logits on {found.device} for parts on {there}: use the parts' device")


class _Placed(TorchFunctionMode):
    """Fails the law for a tensor created on the default device, except a single number, which works with any device."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in _CONSTRUCTORS and "device" not in (kwargs or {}) and found.dim():
            broken(
                f"{self.method} creates a tensor with torch.{func.__name__} without a device: pass its input's device"
            )
        return found


def _check_name(what: str, name: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        broken(f"{what} {name!r} must have a Python identifier as its name")


def _check_part(name: str, part: Any, items: int) -> None:
    if not isinstance(part, (Tensor, Ragged)):
        broken(f"part {name!r} must be a tensor or kdplug.Ragged, got {type(part).__name__}")
    first = part.counts if isinstance(part, Ragged) else part
    if first.shape[:1] != (items,):
        what = "counts of part" if isinstance(part, Ragged) else "part"
        broken(f"{what} {name!r} is {list(first.shape)}, but its first dimension must be the {items} items")
    if isinstance(part, Ragged):
        if part.counts.is_floating_point() or part.counts.dim() != 1:
            broken(f"counts of part {name!r} must be integers, one per item")
        total = sum(part.counts.tolist())
        if total != len(part.values) or int(part.counts.min()) < 0:
            broken(
                f"counts of part {name!r} add up to {total}, but the part has {len(part.values)} rows: "
                "count the rows of each item"
            )


def _filed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Save the tensors to a file and load them again."""
    try:
        found: dict[str, Tensor] = load(save({name: one.detach().contiguous() for name, one in tensors.items()}))
    except Exception as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        broken(
            f"a file cannot hold {', '.join(tensors)}: {reason}. Return a separate tensor for each name, of a dtype "
            "that safetensors has"
        )
    return {name: found[name] for name in tensors}


@contextmanager
def _unchanged(what: str, value: Any) -> Iterator[None]:
    before = {name: tensor.clone() for name, tensor in tensors_of(value).items()}
    yield
    for name, tensor in tensors_of(value).items():
        if not _equal(tensor, before[name]):
            broken(f"modified its input in place: {what} {name}")


def _equal(one: Tensor, two: Tensor) -> bool:
    return one.dtype is two.dtype and one.shape == two.shape and bool(torch.equal(one, two))
