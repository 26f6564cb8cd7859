"""Laws on the form of what a cache codec keeps."""

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
from kdplug.testing.law import broken

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


class CodecFormLaws(CodecCase):
    """A cache cuts what is kept into examples, writes it to a file, and reads it in another process."""

    def test_it_offers_all_that_a_cache_asks_for(self) -> None:
        """For: a method that is missing or misspelt; a flag that is written as a method, which is always true."""
        codec = self.codec()
        lacking = [name for name in vars(CacheCodec) if not name.startswith("_") and not hasattr(codec, name)]
        if lacking:
            broken(f"is no cache codec: it lacks {', '.join(lacking)}")
        for name in ("uses_temperature", "takes_factored"):
            flag = getattr(codec, name)
            if not isinstance(flag, bool):
                broken(f"{name} must be True or False, and is {flag!r}: a class attribute or a property")

    def test_it_keeps_tensors_by_name(self) -> None:
        """For: a list, a number for all items together, counts that do not add up to the rows, a name with a slash in it."""
        codec = self.codec()
        given = self.given(codec)
        parts = self.keep(codec, given).parts
        if not isinstance(parts, Mapping) or not parts:
            broken("encode keeps nothing: parts must be a mapping of tensors, one at least")
        for name, part in parts.items():
            _check_name("part", name)
            _check_part(name, part, self.items)
        for name, tensor in codec.shared(given).items():
            _check_name("what is kept once, ", name)
            if not isinstance(tensor, Tensor):
                broken(f"what is kept once must be tensors, and {name!r} is {type(tensor).__name__}")

    def test_every_item_is_kept_in_the_same_form(self) -> None:
        """For: a dtype that is chosen by the largest id of a batch, a width that is that of its widest item (use ``Ragged``)."""
        codec = self.codec()
        first = {name: form_of(part) for name, part in self.keep(codec, self.given(codec)).parts.items()}
        for items, size in ((1, 3.0), (2, 1e-3), (4, 40.0)):
            parts = self.keep(codec, self.given(codec, items, seed=items, size=size)).parts
            again = {name: form_of(part) for name, part in parts.items()}
            if again != first:
                name = next(name for name in (*first, *again) if first.get(name) != again.get(name))
                broken(
                    f"part {name!r} is {first.get(name, 'not there')} of some items, and {again.get(name, 'not there')} of others: "
                    "they cannot be joined"
                )

    def test_another_process_reads_what_it_kept(self) -> None:
        """For: a scale that ``encode`` remembers and ``decode`` needs; a dtype that no file holds; two names of one tensor."""
        codec = self.codec()
        given = self.given(codec)
        self.keep(codec, self.given(codec, seed=1, size=50.0))  # of another batch
        trip, shared = self.trip(codec, given), self.shared(codec, given)
        self.keep(codec, self.given(codec, seed=1, size=50.0))
        parts = {
            name: Ragged(*_filed(part._asdict()).values()) if isinstance(part, Ragged) else _filed({name: part})[name]
            for name, part in trip.kept.parts.items()
        }
        try:
            found = self.read(self.codec(), parts, _filed(shared))
        except (AttributeError, KeyError) as error:
            broken(f"a codec that has encoded nothing cannot read what another has: {type(error).__name__}: {error}")
        if not same(found, trip.found):
            broken(
                "another codec of the same settings reads other logits out of the same parts: keep all that decode needs"
            )

    def test_what_is_kept_once_does_not_depend_on_the_items(self) -> None:
        """For: a codebook, a mean or a range of the first batch, by which those of every other batch are then read."""
        codec = self.codec()
        given = self.given(codec)
        first = tensors_of(codec.shared(given))
        again = tensors_of(self.codec().shared(at(given, [4, 1])))
        for name, tensor in first.items():
            if name not in again or not _equal(tensor, again[name]):
                broken(f"what is kept once, {name!r}, is another one where other items are seen")

    def test_its_inputs_are_not_modified(self) -> None:
        """For: logits that are divided in place, which the loss of this very step is then computed of; parts that are unpacked
        in place.
        """
        codec = self.codec()
        given = self.given(codec)
        with _unchanged("the given", given):
            shared, kept = self.shared(codec, given), self.keep(codec, given)
        with _unchanged("part", kept.parts), _unchanged("what is kept once,", shared):
            self.read(codec, kept.parts, shared)

    def test_it_works_on_any_device(self) -> None:
        """For: ``torch.arange(n)`` without a device, which goes well until the teacher is on a GPU."""
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
                broken(f"decode returns logits on {found.device}, of parts on {there}")


class _Placed(TorchFunctionMode):
    """Ends the law at a tensor that is made wherever the default is; a single number may be, since it goes with any device."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in _CONSTRUCTORS and "device" not in (kwargs or {}) and found.dim():
            broken(f"{self.method} makes a tensor by torch.{func.__name__} without a device: give that of its input")
        return found


def _check_name(what: str, name: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        broken(f"{what} {name!r} must have a Python name")


def _check_part(name: str, part: Any, items: int) -> None:
    if not isinstance(part, (Tensor, Ragged)):
        broken(f"part {name!r} must be a tensor or kdplug.Ragged, and is {type(part).__name__}")
    first = part.counts if isinstance(part, Ragged) else part
    if first.shape[:1] != (items,):
        what = "counts of part" if isinstance(part, Ragged) else "part"
        broken(f"{what} {name!r} is {list(first.shape)}, and the first dimension must be the {items} items")
    if isinstance(part, Ragged):
        if part.counts.is_floating_point() or part.counts.dim() != 1:
            broken(f"counts of part {name!r} must be whole numbers, one for each item")
        total = sum(part.counts.tolist())
        if total != len(part.values) or int(part.counts.min()) < 0:
            broken(f"counts of part {name!r} add up to {total}, and it has {len(part.values)} rows")


def _filed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors after a way through a file."""
    try:
        found: dict[str, Tensor] = load(save({name: one.detach().contiguous() for name, one in tensors.items()}))
    except Exception as error:
        broken(f"a file cannot hold {', '.join(tensors)}: {str(error).strip().splitlines()[0]}")
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
