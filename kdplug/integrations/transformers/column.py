"""Which columns of a batch each model is called with."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

TEACHER = "teacher"
"""The key of a batch under which a collator may put a mapping for the teachers alone, as with a tokenizer of their own."""


def columns(model: nn.Module) -> frozenset[str] | None:
    """The named arguments of a model's forward; ``None`` where it takes anything and names nothing."""
    core = getattr(model, "get_base_model", lambda: model)()
    kinds = inspect.Parameter
    found = inspect.signature(core.forward).parameters.values()
    named = frozenset(one.name for one in found if one.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL))
    return named or None


class Columns:
    """Divides batches between a student and its teachers.

    The student gets all but what just a teacher takes. A teacher gets what its forward names, without the labels, unless it
    makes its decoder's inputs of them; of the batch, or of what stands under ``teacher`` in it.
    """

    def __init__(self, student: nn.Module, teachers: Mapping[str, nn.Module], labels: Iterable[str]) -> None:
        self._student = columns(student)
        self._teachers = {key: columns(model) for key, model in teachers.items()}
        self._labelled = {key for key, model in teachers.items() if _is_encoder_decoder(model)}
        self._labels = frozenset(labels)

    @property
    def of_teachers(self) -> frozenset[str]:
        """Every column that some teacher takes."""
        return frozenset().union(*(found for found in self._teachers.values() if found is not None))

    def student(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        others = self.of_teachers - self._student if self._student is not None else frozenset()
        return {key: value for key, value in batch.items() if key != TEACHER and key not in others}

    def teacher(self, key: str, batch: Mapping[str, Any]) -> dict[str, Any]:
        own = batch.get(TEACHER)
        found = own if isinstance(own, Mapping) else batch
        hidden = frozenset() if key in self._labelled else self._labels
        taken = self._teachers[key]
        return {
            name: value
            for name, value in found.items()
            if name != TEACHER and name not in hidden and (taken is None or name in taken)
        }


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
