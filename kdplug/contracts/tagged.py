"""Something that belongs to one of several tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tagged:
    """A batch on its way in, or outputs on their way out, with the task they belong to."""

    task: str
    value: Any
