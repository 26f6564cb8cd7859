"""A teacher that runs once on every example, and whose outputs are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from kdplug.contracts.outputs import Outputs
from kdplug.contracts.vocabulary import EXAMPLE_IDS
from kdplug.engine.cache.fingerprint import OneTeacher
from kdplug.engine.cache.key import Keyed, Source
from kdplug.engine.cache.store import Store
from kdplug.engine.teacher import Ensemble
from kdplug.engine.training_module import split, to_device
from kdplug.errors import RunError

_CPU = torch.device("cpu")


class CachedTeacher:
    """Replaces ``teacher``. Until there is a ``store``, it runs the teacher itself.

    ``postprocess`` is the user's batch postprocessor, applied to every batch of ``source``.
    """

    def __init__(
        self,
        teacher: OneTeacher | Ensemble,
        source: Source,
        postprocess: Callable[[Any], Any] | None = None,
    ) -> None:
        self.teacher = teacher
        self.model = teacher.model
        self.source = source
        self.store: Store | None = None
        self._postprocess = postprocess

    @property
    def teachers(self) -> dict[str, OneTeacher]:
        """The teachers by key; a single one has the key ``teacher``."""
        return dict(self.teacher.teachers) if isinstance(self.teacher, Ensemble) else {"teacher": self.teacher}

    def __call__(
        self,
        batch: Any,
        model_args: Mapping[str, Any],
        cache: Any = None,
        precision: AbstractContextManager[Any] | None = None,
    ) -> Any:
        """Return the outputs for the objective, in the same form as ``teacher`` does."""
        if isinstance(cache, Recall):
            cache = cache.outputs()
        if cache is None:
            return self.teacher(batch, model_args, None, precision)
        return dict(zip(self.teachers, cache, strict=True)) if isinstance(self.teacher, Ensemble) else cache[0]

    def prepared(self, keyed: Keyed) -> dict[str, Any]:
        """Return a batch of the source split by side, with a ``Recall`` for the teacher's outputs and the examples' ids."""
        parts = self._parts(keyed.batch)
        return {
            "teacher": parts.teacher,
            "student": parts.student,
            "teacher_cache": Recall(self, keyed, parts.teacher),
            EXAMPLE_IDS: keyed.ids if parts.ids is None and not self.source.is_whole else parts.ids,
        }

    def inputs_of(self, batch: Any) -> Any:
        """Return the teacher's part of a batch."""
        return self._parts(batch).teacher

    def to(self, device: torch.device) -> None:
        self.teacher.to(device)

    def frozen(self, student: nn.Module | None = None) -> AbstractContextManager[None]:
        return self.teacher.frozen(student)

    def hooked(self, objective: Any) -> AbstractContextManager[None]:
        """Register capture hooks if the teacher is still going to run."""
        return self.teacher.hooked(objective) if self.store is None else nullcontext()

    def _parts(self, batch: Any) -> Any:
        parts = split(batch if self._postprocess is None else self._postprocess(batch))
        if parts.cache is not None:
            raise RunError(
                "the batches already contain a key 'teacher_cache', so there is nothing to cache. Set is_caching_logits to "
                "false",
                field="is_caching_logits",
            )
        return parts


class Recall:
    """The teacher's outputs for one batch, looked up when the batch is moved to the device, else when the teacher runs."""

    __slots__ = ("_inputs", "_keyed", "_teacher")

    def __init__(self, teacher: CachedTeacher, keyed: Keyed, inputs: Any) -> None:
        self._teacher = teacher
        self._keyed = keyed._replace(batch=None)
        self._inputs = inputs

    def outputs(self, device: torch.device = _CPU) -> list[Outputs] | None:
        """Return the outputs of each teacher, or ``None`` without a store. Coded ones are decoded on ``device``."""
        store = self._teacher.store
        return None if store is None else store.recall(self._keyed, self._inputs, device)

    def to(self, device: torch.device) -> Any:
        """Return the outputs on ``device``; does nothing if there is no store."""
        found = self.outputs(device)
        return self if found is None else to_device(found, device)
