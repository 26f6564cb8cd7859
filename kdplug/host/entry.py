"""One named callable of a kind, known by name long before it is imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, cast

from kdplug.errors import BrokenEntryError
from kdplug.host.kind import Kind

if TYPE_CHECKING:
    from pydantic import BaseModel

    from kdplug.host.signature import Signature

Origin = Literal["metadata", "hook", "local"]

LOCAL = "local"
"""The distribution of entries that were registered in this process."""


@dataclass(eq=False)
class Entry:
    """One named callable of a kind.

    ``target`` is the callable or ``"module:attribute"``. ``positional`` marks a callable that is called by position, as
    TextBrewer's maps do, instead of by the names of its parameters; ``site`` limits a loss to one place in a config.
    """

    kind: Kind
    name: str
    dist: str
    version: str
    target: str | Callable[..., Any]
    origin: Origin = "metadata"
    editable: Callable[[], bool] = field(default=lambda: False, repr=False)
    positional: bool = False
    site: str | None = None
    error: BaseException | None = field(default=None, repr=False)

    @property
    def qualified(self) -> str:
        """``distribution:name``, which always means this entry."""
        return f"{self.dist}:{self.name}"

    @property
    def owner(self) -> str:
        """The distribution and its version, for messages."""
        return f"{self.dist} {self.version}".strip()

    def load(self) -> Callable[..., Any]:
        """Import the callable. A failure is not remembered as a success: the next call tries again.

        Raises: ``BrokenEntryError`` with the original exception as its cause.
        """
        if not isinstance(self.target, str):
            return self.target
        try:
            found = self._import()
            if not callable(found):
                raise TypeError(f"{self.target} is {type(found).__name__}, not something that can be called")
        except (Exception, SystemExit) as error:
            self.error = error
            raise BrokenEntryError(self._failure(error)) from error
        self.error = None
        return cast("Callable[..., Any]", found)

    def _import(self) -> Any:
        assert isinstance(self.target, str)
        module, _, attributes = self.target.partition(":")
        found: Any = import_module(module.strip())
        for attribute in attributes.split("[")[0].strip().split("."):
            found = getattr(found, attribute)
        return found

    def _failure(self, error: BaseException) -> str:
        editable = ", editable" if self.editable() else ""
        return (
            f"{self.qualified!r} is installed but failed to load: {type(error).__name__}: {error}\n"
            f"    ({self.target}, {self.owner}{editable}). "
            f"Fix it, upgrade it, or leave it out: KDPLUG_PLUGINS=-{self.dist}"
        )

    @cached_property
    def signature(self) -> Signature:
        """What the callable asks for; importing it on first use.

        Raises: ``BrokenEntryError``; ``SignatureError`` where it asks for something that the engine does not provide.
        """
        from kdplug.host.signature import read_signature

        return read_signature(self, self.load())

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs it asks for, by canonical name, in the order in which it takes them."""
        return self.signature.inputs

    @cached_property
    def settings(self) -> type[BaseModel]:
        """The pydantic model of its settings, derived from the signature or taken from ``Settings``."""
        from kdplug.host.setting import settings_model

        return settings_model(self)
