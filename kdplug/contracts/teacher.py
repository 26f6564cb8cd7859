"""Interfaces of teachers that are not separate modules: external ones, and a student without its adapters."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class ExternalTeacher(Protocol):
    """A teacher that is not a PyTorch module: a model behind a server, or in another runtime.

    Any class with these members is an external teacher; it need not import kdplug. Its ``__init__`` takes keyword-only
    settings, and is cheap: it does not contact a server.
    """

    def __call__(self, batch: Any) -> Mapping[str, Any]:
        """Return what an adaptor returns: a mapping with keys from ``kdplug.ADAPTOR_KEYS``, of tensors on any device.

        ``batch`` is the teacher's part of the batch, on the device of the run. The same batch must always give the same
        outputs. An exception ends the run, which is saved first, so retry here what may succeed later.
        """
        ...

    def fingerprint(self) -> Any:
        """Return plain data that changes whenever the outputs change, such as the name and the version of the model.

        A teacher cache and a resumed run must have the same. Leave out what does not change outputs, such as an address.
        """
        ...


@runtime_checkable
class SwitchesAdapters(Protocol):
    """A student whose adapters can be switched off, such as a ``PeftModel``."""

    def disable_adapter(self) -> AbstractContextManager[Any]:
        """Return a context inside which the model computes what it would without its adapters."""
        ...
