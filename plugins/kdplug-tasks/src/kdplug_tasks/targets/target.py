"""What one output of a model is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from kdplug_tasks.data.source import Source
from kdplug_tasks.data.table import Table


class Target(Protocol):
    """How a target is read, compared with logits, and measured. ``columns`` hold it."""

    columns: tuple[str, ...]
    metric: str

    def settle(self, source: Source, teacher: Any) -> dict[str, Any]:
        """What the configs of the models are told. ``teacher`` is the config of one whose head is trained.

        Raises: ``ConfigError``.
        """
        ...

    def read(self, table: Table, *, optional: bool) -> list[Any]:
        """The target of each row. Raises: ``ConfigError`` for a row without one, unless ``optional``."""
        ...

    def collate(self, values: Sequence[Any]) -> Tensor:
        """The targets of a batch."""
        ...

    def adapted(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        """``losses`` as a ``LossSum``, and ``labels`` where the targets are classes. Rows without a target count nothing."""
        ...

    def figures(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        """What the logits are worth."""
        ...

    def about(self) -> str:
        """A sentence for the start of a run."""
        ...
