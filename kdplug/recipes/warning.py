"""What a plan warns of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdplug.recipes.plan_sample import Sample


@dataclass(frozen=True, slots=True)
class PlanWarning:
    """Something that the run will do, and that is hardly meant.

    ``check`` names the rule, ``field`` is the path in the recipe (empty where there is none).
    """

    check: str
    field: str
    message: str


Check = Callable[["Sample"], Iterator[PlanWarning]]
"""A rule: from what was seen of the models on the first batches to what is wrong with it."""
