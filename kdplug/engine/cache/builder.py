"""Run the teachers and collect the outputs that an objective reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.outputs import Outputs
from kdplug.contracts.vocabulary import EXTRAS
from kdplug.engine.cache.coding import Coded, Coding, encode, shared_by
from kdplug.engine.cache.content import Content, RequiredOutputs, flatten
from kdplug.engine.cache.key import Keyed
from kdplug.engine.cache.layout import Layout, padding_signatures
from kdplug.engine.cache.repad import padding_signature
from kdplug.engine.cache.shard import CodingStats, Column, Shard
from kdplug.engine.cache.store import PADDING_SIGNATURE, PARAMETERS
from kdplug.engine.teacher import TeacherSide
from kdplug.engine.training_module import to_device
from kdplug.errors import RunError
from kdplug.objective.batch import check_mask, extended_hint
from kdplug.objective.capture.path import Modules
from kdplug.objective.selection import head_masks, is_ignored


def take_heads(content: Content, outputs: Outputs) -> dict[str, tuple[Any, Tensor | None]]:
    """Remove heads and masks from ``content`` and return each head with its mask, by name.

    Raises: ``RunError`` for a mask of another shape; ``OutputsError`` if there are not as many masks as heads, or if a
    mask holds values other than 0 and 1.
    """
    heads = {name: logits for name, logits in content.tensors.items() if name.startswith("logits/")}
    for name in [*heads, *(name for name in content.tensors if name.startswith("logits_mask/"))]:
        del content.tensors[name]
    if not heads:
        return {}
    masks = head_masks(outputs, len(heads), "teacher")
    found = {name: (one, _fitting(name, one, mask)) for (name, one), mask in zip(heads.items(), masks, strict=True)}
    if any(mask is not None for _, mask in found.values()):
        return {name: (one, _all_of(one) if mask is None else mask) for name, (one, mask) in found.items()}
    return found


def _fitting(name: str, logits: Any, mask: Tensor | None) -> Tensor | None:
    if mask is None or (len(logits.shape) == 2 and is_ignored(mask, torch.empty(logits.shape, device="meta"))):
        return None
    if mask.shape != logits.shape[:-1]:
        raise RunError(
            f"the teacher's logits_mask {list(mask.shape)} does not match its {name} {list(logits.shape)}: expected "
            "one value per item"
            f"{extended_hint(mask)}",
            field="teacher_cache_codec",
        )
    check_mask(mask, "", field="teacher.logits_mask")
    return mask


def _all_of(logits: Any) -> Tensor:
    return torch.ones(logits.shape[:-1], dtype=torch.bool)


def parameter_names(wanted: Sequence[RequiredOutputs]) -> list[str]:
    """Return the names under which the teachers' parameters and buffers are stored."""
    return [f"{place}/{PARAMETERS}/{path}" for place, one in enumerate(wanted) for path in one.parameters]


class TeacherBatch(NamedTuple):
    """The teachers' outputs for a batch: tensors by name with examples first, coded heads by name, number of layers by
    teacher, and the raw logits if they are still needed.
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
class CacheBuilder:
    """Runs each teacher once per batch. ``inputs_of`` returns the teacher's part of a batch, ``models`` are the teachers'.

    ``batches`` counts the passes; ``finished`` is called with the number of examples after each. With a ``coding``, its codec stores the logits; other outputs are stored in
    ``dtype``.
    """

    teacher: TeacherSide
    models: Sequence[nn.Module]
    wanted: Sequence[RequiredOutputs]
    inputs_of: Callable[[Any], Any]
    model_args: Mapping[str, Any]
    device: torch.device
    precision: Callable[[], AbstractContextManager[Any] | None]
    is_whole: bool
    dtype: torch.dtype | None
    coding: Coding | None = None
    batches: int = 0
    finished: Callable[[int], None] = lambda _: None
    _error: float = field(default=0.0, init=False)

    def ask(self, keyed: Keyed, *, shares: bool = False) -> TeacherBatch:
        """Return the teachers' outputs for a batch; if ``shares``, with the tensors that are stored once.

        Raises: ``ConfigError`` for a parameter that a teacher does not have; ``RunError`` for outputs that cannot be divided among the examples.
        """
        inputs = self.inputs_of(keyed.batch)
        returned = self.teacher(to_device(inputs, self.device), self.model_args, None, self.precision())
        self.batches += 1
        self.finished(len(keyed.keys))
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
        return TeacherBatch(keyed, inputs, tensors, counts, coded, shared | self._parameters() if shares else shared)

    def layout(self, answer: TeacherBatch) -> Layout:
        """Return the layout of the outputs, from those of one batch."""
        found = Layout.of(answer.counts, answer.tensors, None if self.is_whole else answer.inputs, answer.coded)
        return replace(found, parameters=tuple(parameter_names(self.wanted)))

    @property
    def reads_extras(self) -> bool:
        """Return whether extras are stored, whose first dimension only a batch of another size shows."""
        return any(one.extras for one in self.wanted)

    def check_sizes(self, whole: TeacherBatch, smaller: TeacherBatch, layout: Layout) -> None:
        """Raise ``RunError`` for an extra whose size, apart from the input length, depends on the number of examples."""
        for name, tensor in whole.tensors.items():
            other = smaller.tensors.get(name)
            key = name.split("/")[1]
            if (
                key == EXTRAS
                and other is not None
                and name not in layout.lengths
                and tensor.shape[1:] != other.shape[1:]
            ):
                raise RunError(
                    f"the teacher's {name.partition('/')[2]} is {list(tensor.shape)} for {len(whole.keyed.keys)} examples and "
                    f"{list(other.shape)} for {len(smaller.keyed.keys)}: each row depends on the other examples of its batch, or on "
                    "padding, so rows cannot be moved to other batches. Change adaptor_T, pad all examples to one "
                    "length, or set is_caching_logits to false",
                    field="is_caching_logits",
                )

    def _parameters(self) -> dict[str, Tensor]:
        found = {}
        for place, (model, wanted) in enumerate(zip(self.models, self.wanted, strict=True)):
            modules = Modules(model, "teacher") if wanted.parameters else None
            for path in wanted.parameters:
                assert modules is not None
                tensor = modules.tensor(path)().detach()
                found[f"{place}/{PARAMETERS}/{path}"] = tensor.to("cpu", copy=True).contiguous()
        return found

    def shard(self, start: int, answers: Sequence[TeacherBatch], layout: Layout) -> Shard:
        """Build a shard from the teacher outputs for consecutive batches.

        Raises: ``RunError`` if they have different outputs, or values outside the range of the storage dtype.
        """
        columns: dict[str, list[Tensor]] = {}
        self._error = 0.0
        for answer in answers:
            _check_kind(answer, layout)
            found = padding_signatures(answer.inputs) if layout.padding_signatures else {}
            for name, tensor in answer.tensors.items():
                layout.check(name, tensor.shape, found)
                columns.setdefault(name, []).append(self._narrowed(name, tensor))
            for name, head in answer.coded.items():
                layout.check(name, head.shape, found)
                for part, rows in head.rows.items():
                    columns.setdefault(part, []).extend(row.unsqueeze(0) for row in rows)
            for path in layout.padding_signatures:
                columns.setdefault(PADDING_SIGNATURE + path, []).append(padding_signature(found[path]))
        digests = tuple(mark for answer in answers for mark in answer.keyed.digests)
        tally = CodingStats.sum(tally for answer in answers for tally in _tallies(answer))
        joined = {name: Column.join(parts) for name, parts in columns.items()}
        return Shard(start, digests, joined, tally + CodingStats(error=self._error))

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
                f"the teacher's {name} {list(shape)} cannot be divided among the {len(keyed.keys)} examples of a "
                "batch: its first dimension must be the batch. Change adaptor_T, or set is_caching_logits to false",
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
                f"the teacher's {name.partition('/')[2]} reaches {tensor[finite].abs().max().item():g}, which float16 "
                "cannot hold. Set teacher_cache_dtype to bfloat16, or remove teacher_cache_dtype"
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


def _check_kind(answer: TeacherBatch, layout: Layout) -> None:
    if tuple(answer.counts) != layout.counts or _kinds(answer) != _kept(layout):
        now, kept = _kinds(answer), _kept(layout)
        if one_sided := sorted(now.keys() ^ kept.keys()):
            shown = f"only one of the two has {', '.join(one_sided)}"
        elif tuple(answer.counts) != layout.counts:
            shown = f"the numbers of layers are {list(answer.counts)} and {list(layout.counts)}"
        else:
            shown = f"{', '.join(sorted(name for name in now if now[name] != kept[name]))} is encoded differently"
        raise RunError(
            f"the teacher's outputs for the batch of example {answer.keyed.keys[0]} differ in kind from those for the "
            f"first batch: {shown}. adaptor_T must return the same keys, with the same number of tensors, for every batch"
        )


def _kinds(answer: TeacherBatch) -> dict[str, Any]:
    return {**dict.fromkeys(answer.tensors), **{name: one.head for name, one in answer.coded.items()}}


def _kept(layout: Layout) -> dict[str, Any]:
    return {**dict.fromkeys(layout.dtypes), **layout.heads}


def _tallies(answer: TeacherBatch) -> Iterator[CodingStats]:
    """Yield the statistics of each head of logits, raw or coded."""
    for name, tensor in answer.tensors.items():
        if name.split("/")[1] == "logits" and tensor.dim():
            items = prod(tensor.shape[:-1])
            yield CodingStats(items, items, float(items))
    for head in answer.coded.values():
        yield head.tally
