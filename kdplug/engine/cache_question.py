"""Asking the teachers about examples, for what an objective reads of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdplug.contracts.outputs import Outputs
from kdplug.engine.batch import to_device
from kdplug.engine.cache_content import Wanted, flatten
from kdplug.engine.cache_key import Keyed
from kdplug.engine.cache_layout import Layout, guides
from kdplug.engine.cache_shard import Column, Shard
from kdplug.engine.cache_store import GUIDE
from kdplug.engine.teacher import TeacherSide
from kdplug.errors import RunError


class Answer(NamedTuple):
    """What the teachers made of a batch: tensors by name with the examples first, and how many layers each teacher has."""

    keyed: Keyed
    inputs: Any
    tensors: dict[str, Tensor]
    counts: list[dict[str, int]]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(slots=True, eq=False)
class Question:
    """One forward pass of each teacher for each batch. ``inputs_of`` gives the teacher's part of a batch.

    ``batches`` counts the passes; ``error`` is the largest difference that keeping outputs in ``dtype`` has made so far.
    """

    teacher: TeacherSide
    wanted: Sequence[Wanted]
    inputs_of: Callable[[Any], Any]
    model_args: Mapping[str, Any]
    device: torch.device
    precision: Callable[[], AbstractContextManager[Any] | None]
    is_whole: bool
    dtype: torch.dtype | None
    batches: int = 0
    error: float = 0.0

    def ask(self, keyed: Keyed) -> Answer:
        """Raises: ``RunError`` for outputs that cannot be divided among the examples."""
        inputs = self.inputs_of(keyed.batch)
        returned = self.teacher(to_device(inputs, self.device), self.model_args, None, self.precision())
        self.batches += 1
        tensors: dict[str, Tensor] = {}
        counts: list[dict[str, int]] = []
        for place, outputs in enumerate(_each(returned, len(self.wanted))):
            content = flatten(outputs, self.wanted[place])
            counts.append(content.counts)
            tensors |= {f"{place}/{name}": self._rows(name, one, keyed) for name, one in content.tensors.items()}
        return Answer(keyed, inputs, tensors, counts)

    def layout(self, answer: Answer) -> Layout:
        """How the outputs lie, from those of one batch."""
        return Layout.of(answer.counts, answer.tensors, None if self.is_whole else answer.inputs)

    def shard(self, start: int, answers: Sequence[Answer], layout: Layout) -> Shard:
        """The answers to neighbouring batches, as they are kept.

        Raises: ``RunError`` where they are not all of one kind, or do not fit the dtype in which they are to be kept.
        """
        columns: dict[str, list[Tensor]] = {}
        for answer in answers:
            _check_kind(answer, layout)
            found = guides(answer.inputs) if layout.guides else {}
            for name, tensor in answer.tensors.items():
                layout.check(name, tensor, found)
                columns.setdefault(name, []).append(self._narrowed(name, tensor))
            for path in layout.guides:
                columns.setdefault(GUIDE + path, []).append(found[path].cpu())
        digests = tuple(mark for answer in answers for mark in answer.keyed.digests)
        return Shard(start, digests, {name: Column.join(parts) for name, parts in columns.items()})

    def _rows(self, name: str, tensor: Tensor, keyed: Keyed) -> Tensor:
        tensor = tensor.detach().to("cpu")
        if self.is_whole:
            return tensor.unsqueeze(0)
        if not tensor.dim() or len(tensor) != len(keyed.keys):
            raise RunError(
                f"the teacher's {name} {list(tensor.shape)} cannot be divided among the {len(keyed.keys)} examples of a batch: its "
                "first dimension must be the batch. Change adaptor_T, or set is_caching_logits to false",
                field="is_caching_logits",
            )
        return tensor

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
        self.error = max(self.error, difference.max().item() if difference.numel() else 0.0)
        return kept


def _each(returned: Any, teachers: int) -> list[Outputs]:
    if teachers == 1 and not (
        isinstance(returned, dict) and any(isinstance(one, Outputs) for one in returned.values())
    ):
        return [Outputs.read(returned, "teacher")]
    return list(returned.values())


def _check_kind(answer: Answer, layout: Layout) -> None:
    if tuple(answer.counts) != layout.counts or answer.tensors.keys() != layout.dtypes.keys():
        differing = sorted(answer.tensors.keys() ^ layout.dtypes.keys()) or [
            str(answer.counts),
            str(list(layout.counts)),
        ]
        raise RunError(
            f"the teacher returned other outputs for example {answer.keyed.keys[0]} than for the first ones: {', '.join(differing)}"
        )
