"""Facts about a config key that its type, bounds and description do not express, declared at its pydantic field.

``Annotated[Device, KeyFacts(identity=False)]`` declares that a device does not affect the result of a run. The
functions here return the keys with a given fact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import PlainSerializer

from kdplug.host.kind import KINDS

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """Marker for a field.

    ``identity``: the key affects the result of training, so it is compared on resume. ``needs``: another key, without
    which this one has no effect. ``replaced_by``: another key that sets the same, so that the two cannot be combined.
    """

    identity: bool = True
    needs: str = ""
    replaced_by: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Marker for a field that holds a component of the kind ``plural``, or a list of them if ``many``.

    ``none`` is allowed if ``optional``. ``words`` are allowed in place of a name; they mean no entry.
    """

    plural: str
    slot: str | None = None
    optional: bool = False
    words: tuple[str, ...] = ()
    many: bool = False

    @property
    def definition(self) -> str:
        """Name among the definitions of the JSON Schema."""
        noun = KINDS[self.plural].noun.replace(" ", "_")
        return f"{self.slot}_{noun}" if self.slot else noun


def not_identity(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys that do not affect the result of training: a run may be resumed with different values."""
    return tuple(key for key, facts in _marked(model, KeyFacts) if not facts.identity)


def keys_that_need(model: type[BaseModel], other: str) -> tuple[str, ...]:
    """Return the keys that have no effect without ``other``."""
    return tuple(key for key, facts in _marked(model, KeyFacts) if facts.needs == other)


def keys_replaced_by(model: type[BaseModel], other: str) -> tuple[str, ...]:
    """Return the keys that ``other`` replaces."""
    return tuple(key for key, facts in _marked(model, KeyFacts) if facts.replaced_by == other)


def places(model: type[BaseModel]) -> dict[str, Place]:
    """Return the keys that hold a component."""
    return dict(_marked(model, Place))


def written_default(field: FieldInfo) -> Any:
    """Return the default of a field as it is written in a config."""
    value = field.get_default()
    writers = [mark.func for mark in field.metadata if isinstance(mark, PlainSerializer)]
    return cast("Callable[[Any], Any]", writers[0])(value) if writers else value


def _marked(model: type[BaseModel], kind: type[T]) -> Iterator[tuple[str, T]]:
    for key, field in model.model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, kind):
                yield key, mark
