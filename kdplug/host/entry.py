"""Registry entries: named callables that are imported on first use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from kdplug.errors import BrokenEntryError, SignatureError
from kdplug.host.isolation.plugin_code import described, run_plugin_code
from kdplug.host.kind import EntryInfo

if TYPE_CHECKING:
    from pydantic import BaseModel

    from kdplug.host.signature import Signature

T = TypeVar("T")
LOCAL = "local"
"""Distribution name of entries registered in this process."""


@dataclass(eq=False)
class Entry(EntryInfo):
    """An entry that can be imported, with the inputs and settings of its callable."""

    def load(self) -> Callable[..., Any]:
        """Import the callable. After a failure, the next call tries again.

        Raises: ``BrokenEntryError`` with the original exception as its cause.
        """
        if not isinstance(self.target, str):
            return self.target
        found = _imported(self.target)
        if found is None:
            done = run_plugin_code(
                self._import, f"importing {self.qualified!r} ({self._source()})", self.dist, "import"
            )
            if done.error is not None:
                self.error = done.error
                raise BrokenEntryError(self._failure(done.error)) from done.error
            found = done.value
        self.error = None
        return cast("Callable[..., Any]", found)

    def _import(self) -> Any:
        assert isinstance(self.target, str)
        module, _, attributes = self.target.partition(":")
        found: Any = import_module(module.strip())
        for attribute in attributes.split("[")[0].strip().split("."):
            found = getattr(found, attribute)
        if not callable(found):
            raise TypeError(f"{self.target} is not callable, but of type {type(found).__name__}")
        return found

    def _source(self) -> str:
        return f"{self.target}, {self.owner}{', editable' if self.editable() else ''}"

    def _failure(self, error: BaseException) -> str:
        return (
            f"{self.qualified!r} is installed but failed to load: {described(error)}\n"
            f"    ({self._source()}). Correct or upgrade the package, or disable it: KDPLUG_PLUGINS=-{self.dist}"
        )

    @cached_property
    def signature(self) -> Signature:
        """Inputs and settings of the callable, which is imported on first use.

        Raises: ``BrokenEntryError``; ``SignatureError`` if it requests an input that the engine does not provide, or if
        reading the signature fails.
        """
        from kdplug.host.signature import read_signature

        return self._read("signature", partial(read_signature, self, self.load()))

    def _read(self, what: str, read: Callable[[], T]) -> T:
        """Call ``read`` in isolation, since it evaluates annotations and other plugin code."""
        done = run_plugin_code(read, f"reading the {what} of {self.qualified!r} ({self._source()})", self.dist, "read")
        if isinstance(done.error, (BrokenEntryError, SignatureError)):
            raise done.error
        if done.error is not None:
            message = f"the {what} of {self.name} ({self.dist}) cannot be read: {described(done.error)}"
            raise SignatureError(message) from done.error
        return cast("T", done.value)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Canonical names of its inputs, in parameter order."""
        return self.signature.inputs

    @cached_property
    def settings(self) -> type[BaseModel]:
        """Pydantic model of its settings, derived from the signature or taken from ``Settings``."""
        from kdplug.host.settings_model import settings_model

        return self._read("settings", partial(settings_model, self, self.load(), self.signature))


def _imported(target: str) -> Any:
    """Return the callable of ``target``, or ``None`` unless its module is imported and the look-up runs no code."""
    module, _, attribute = target.partition(":")
    found = sys.modules.get(module)
    if type(found) is not ModuleType or getattr(vars(found).get("__spec__"), "_initializing", False):
        return None
    value = vars(found).get(attribute)
    return value if callable(value) else None
