"""Whether training the student would write to the teacher's memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kdplug.errors import RunError
from kdplug.objective.fixed_teacher import parts

Named = Iterable[tuple[str, Tensor]]
Span = tuple[int, int, str]
"""The first byte of a tensor, the one after its last, and the tensor's name."""


def check_apart(teacher: nn.Module, student: nn.Module, objective: nn.Module) -> None:
    """See that what is trained has no memory in common with a teacher, whatever parameters stand for it.

    Trained are the parameters of student and objective that ask for a gradient, and the running statistics of their batch
    norms. A base that both share is fine where its parameters are frozen. The modules of it that are the teacher's own
    stay in eval mode, so their statistics are not trained either.

    Raises: ``RunError`` that names what is shared.
    """
    theirs = [*teacher.named_parameters(), *teacher.named_buffers()]
    own = frozenset(teacher.modules())
    for trained in (student, objective):
        asking = [(name, value) for name, value in trained.named_parameters() if value.requires_grad]
        if shared := overlaps(asking, theirs):
            name, other = next(iter(shared.items()))
            raise RunError(
                f"teacher and student share {len(shared)} trainable parameter(s), {name!r} first: training the student "
                f"would change the teacher's {other!r}. Copy them (copy.deepcopy), or set requires_grad=False on what is shared"
            )
        if shared := overlaps(_statistics(trained, own), theirs):
            name, other = next(iter(shared.items()))
            raise RunError(
                f"teacher and student share {len(shared)} buffer(s) that batch norm writes in training, {name!r} first: training the "
                f"student would change the teacher's {other!r}. Copy them (copy.deepcopy), or share the module itself"
            )


def overlaps(ours: Named, theirs: Named) -> dict[str, str]:
    """The names of ``ours`` that have memory in common with one of ``theirs``, each with the name of that one."""
    spans: dict[torch.device, list[Span]] = {}
    held: dict[int, str] = {}
    for name, tensor in theirs:
        held[id(tensor)] = name
        for device, span in _spans(name, tensor):
            spans.setdefault(device, []).append(span)
    sides = {device: _Side(found) for device, found in spans.items()}
    shared = {}
    for name, tensor in ours:
        other = held.get(id(tensor)) or next(
            (found for device, span in _spans(name, tensor) if device in sides and (found := sides[device].at(span))),
            None,
        )
        if other is not None:
            shared[name] = other
    return shared


class _Side:
    """Spans in order, each with whichever reaches furthest of those up to it, so that one look answers for all."""

    def __init__(self, spans: list[Span]) -> None:
        spans.sort()
        self._starts = [start for start, _, _ in spans]
        self._furthest: list[Span] = list(accumulate(spans, _further))

    def at(self, span: Span) -> str | None:
        """The name of one that overlaps ``span``."""
        place = bisect_left(self._starts, span[1])
        if not place:
            return None
        _, end, name = self._furthest[place - 1]
        return name if end > span[0] else None


def _further(one: Span, other: Span) -> Span:
    return other if other[1] > one[1] else one


def _spans(name: str, tensor: Tensor) -> Iterator[tuple[torch.device, Span]]:
    for part in parts(tensor):
        if part.numel():
            start = part.data_ptr()
            reach = sum((size - 1) * stride for size, stride in zip(part.shape, part.stride(), strict=True)) + 1
            yield part.device, (start, start + reach * part.element_size(), name)


def _statistics(model: nn.Module, spared: frozenset[nn.Module]) -> Named:
    for path, module in model.named_modules():
        if isinstance(module, _NormBase) and module not in spared:
            yield from module.named_buffers(prefix=path, recurse=False)
