"""Asking the teachers about examples, for what an objective reads of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.outputs import Outputs
from kdplug.engine.batch import to_device
from kdplug.engine.cache_coding import Coded, Coding, encode, shared_by
from kdplug.engine.cache_content import Wanted, flatten
from kdplug.engine.cache_guide import marks
from kdplug.engine.cache_head import take_heads
from kdplug.engine.cache_key import Keyed
from kdplug.engine.cache_layout import Layout, guides
from kdplug.engine.cache_shard import Column, Shard
from kdplug.engine.cache_store import GUIDE
from kdplug.engine.cache_tally import Tally
from kdplug.engine.teacher import TeacherSide
from kdplug.errors import RunError


class Answer(NamedTuple):
    """What the teachers made of a batch: tensors by name with the examples first, coded heads by name, how many layers each
    teacher has, and the raw logits where they are still wanted.
    """

    keyed: Keyed
    inputs: Any
    tensors: dict[str, Tensor]
    counts: list[dict[str, int]]
    coded: dict[str, Coded]
    shared: dict[str, Tensor]

    @property
    def bytes(self) -> int:
        rows = (row.nbytes for head in self.coded.values() for kept in head.rows.values() for row in kept)
        return sum(tensor.nbytes for tensor in self.tensors.values()) + sum(rows)


@dataclass(slots=True, eq=False)
class Question:
    """One forward pass of each teacher for each batch. ``inputs_of`` gives the teacher's part of a batch.

    ``batches`` counts the passes. With a ``coding`` logits are kept as its codec says, and other outputs in ``dtype``.
    """

    teacher: TeacherSide
    wanted: Sequence[Wanted]
    inputs_of: Callable[[Any], Any]
    model_args: Mapping[str, Any]
    device: torch.device
    precision: Callable[[], AbstractContextManager[Any] | None]
    is_whole: bool
    dtype: torch.dtype | None
    coding: Coding | None = None
    batches: int = 0
    _error: float = field(default=0.0, init=False)

    def ask(self, keyed: Keyed, *, shares: bool = False) -> Answer:
        """The answer about a batch; where it ``shares``, with what the codec keeps once for all.

        Raises: ``RunError`` for outputs that cannot be divided among the examples.
        """
        inputs = self.inputs_of(keyed.batch)
        returned = self.teacher(to_device(inputs, self.device), self.model_args, None, self.precision())
        self.batches += 1
        tensors: dict[str, Tensor] = {}
        counts: list[dict[str, int]] = []
        coded: dict[str, Coded] = {}
        shared: dict[str, Tensor] = {}
        for place, outputs in enumerate(_each(returned, len(self.wanted))):
            content = flatten(outputs, self.wanted[place])
            counts.append(content.counts)
            if self.coding is not None:
                for name, head in take_heads(content, outputs).items():
                    whole = f"{place}/{name}"
                    logits, mask = self._by_example(name, *head, keyed)
                    coded[whole] = encode(self.coding, whole, logits, mask, keyed.keys[0])
                    shared |= shared_by(self.coding, whole, logits, mask) if shares else {}
            tensors |= {f"{place}/{name}": self._rows(name, one, keyed) for name, one in content.tensors.items()}
        return Answer(keyed, inputs, tensors, counts, coded, shared)

    def layout(self, answer: Answer) -> Layout:
        """How the outputs lie, from those of one batch."""
        return Layout.of(answer.counts, answer.tensors, None if self.is_whole else answer.inputs, answer.coded)

    def shard(self, start: int, answers: Sequence[Answer], layout: Layout) -> Shard:
        """The answers to neighbouring batches, as they are kept.

        Raises: ``RunError`` where they are not all of one kind, or do not fit the dtype in which they are to be kept.
        """
        columns: dict[str, list[Tensor]] = {}
        self._error = 0.0
        for answer in answers:
            _check_kind(answer, layout)
            found = guides(answer.inputs) if layout.guides else {}
            for name, tensor in answer.tensors.items():
                layout.check(name, tensor.shape, found)
                columns.setdefault(name, []).append(self._narrowed(name, tensor))
            for name, head in answer.coded.items():
                layout.check(name, head.shape, found)
                for part, rows in head.rows.items():
                    columns.setdefault(part, []).extend(row.unsqueeze(0) for row in rows)
            for path in layout.guides:
                columns.setdefault(GUIDE + path, []).append(marks(found[path]))
        digests = tuple(mark for answer in answers for mark in answer.keyed.digests)
        tally = Tally.sum(tally for answer in answers for tally in _tallies(answer))
        joined = {name: Column.join(parts) for name, parts in columns.items()}
        return Shard(start, digests, joined, tally + Tally(error=self._error))

    def _by_example(self, name: str, logits: Any, mask: Tensor | None, keyed: Keyed) -> tuple[Any, Tensor | None]:
        if self.is_whole:
            logits = logits[None] if isinstance(logits, Tensor) else replace(logits, hidden=logits.hidden[None])
            return logits, None if mask is None else mask[None]
        self._check_divides(name, logits.shape, keyed)
        return logits, mask

    def _rows(self, name: str, tensor: Tensor, keyed: Keyed) -> Tensor:
        tensor = (tensor.dense() if isinstance(tensor, FactoredLogits) else tensor).detach().to("cpu")
        if self.is_whole:
            return tensor.unsqueeze(0)
        self._check_divides(name, tensor.shape, keyed)
        return tensor

    def _check_divides(self, name: str, shape: torch.Size, keyed: Keyed) -> None:
        if not shape or shape[0] != len(keyed.keys):
            raise RunError(
                f"the teacher's {name} {list(shape)} cannot be divided among the {len(keyed.keys)} examples of a batch: its "
                "first dimension must be the batch. Change adaptor_T, or set is_caching_logits to false",
                field="is_caching_logits",
            )

    def _narrowed(self, name: str, tensor: Tensor) -> Tensor:
        if self.dtype is None or "mask" in name.split("/")[1] or not tensor.is_floating_point():
            return tensor
        if tensor.element_size() <= self.dtype.itemsize:
            return tensor
        kept = tensor.to(self.dtype)
        finite = tensor.isfinite()
        if bool((finite & ~kept.isfinite()).any()):
            raise RunError(
                f"the teacher's {name.partition('/')[2]} reaches {tensor[finite].abs().max().item():g}, which float16 cannot hold. "
                "Write teacher_cache_dtype: bfloat16, or leave it out"
            )
        difference = (tensor - kept.to(tensor.dtype))[finite].abs()
        self._error = max(self._error, difference.max().item() if difference.numel() else 0.0)
        return kept


def _each(returned: Any, teachers: int) -> list[Outputs]:
    if teachers == 1 and not (
        isinstance(returned, dict) and any(isinstance(one, Outputs) for one in returned.values())
    ):
        return [Outputs.read(returned, "teacher")]
    return list(returned.values())


def _check_kind(answer: Answer, layout: Layout) -> None:
    if tuple(answer.counts) != layout.counts or _kinds(answer) != _kept(layout):
        differing = sorted(_kinds(answer).keys() ^ layout.names) or [
            str(answer.counts),
            str(list(layout.counts)),
        ]
        raise RunError(
            f"the teacher returned other outputs for example {answer.keyed.keys[0]} than for the first ones: {', '.join(differing)}"
        )


def _kinds(answer: Answer) -> dict[str, Any]:
    return {**dict.fromkeys(answer.tensors), **{name: one.head for name, one in answer.coded.items()}}


def _kept(layout: Layout) -> dict[str, Any]:
    return {**dict.fromkeys(layout.dtypes), **layout.heads}


def _tallies(answer: Answer) -> Iterator[Tally]:
    """Of each head of logits: as they are, or as a codec keeps them."""
    for name, tensor in answer.tensors.items():
        if name.split("/")[1] == "logits" and tensor.dim():
            items = prod(tensor.shape[:-1])
            yield Tally(items, items, float(items))
    for head in answer.coded.values():
        yield head.tally
