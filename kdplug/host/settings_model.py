"""Pydantic models of settings."""

from __future__ import annotations

import inspect
import math
from types import new_class
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, create_model

from kdplug.errors import SignatureError
from kdplug.host.signature import check_setting_names

if TYPE_CHECKING:
    from kdplug.host.kind import EntryInfo
    from kdplug.host.signature import Signature

_MODEL = ConfigDict(
    extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False, protected_namespaces=()
)


def settings_model(entry: EntryInfo, target: Any, signature: Signature) -> type[BaseModel]:
    """Return the pydantic model of an entry's settings.

    Raises: ``SignatureError`` if no valid model can be made from the settings, or a setting cannot be written in a
    config.
    """
    own = getattr(target, "Settings", None)
    if inspect.isclass(own) and issubclass(own, BaseModel):
        check_setting_names(entry, setting_names(own))
        return own if "extra" in own.model_config else _strict(own)
    fields: dict[str, Any] = {}
    for name, setting in signature.settings.items():
        safe = f"{name.lstrip('_')}_" if name.startswith("_") or hasattr(BaseModel, name) else name
        default = ... if setting.required else setting.default
        annotation = setting.annotation
        if isinstance(default, float) and not math.isfinite(default):
            annotation = Annotated[annotation, Field(allow_inf_nan=True)]
        fields[safe] = (annotation, Field(default, alias=name) if safe != name else default)
    try:
        return create_model(f"{entry.name} settings", __config__=_MODEL, **fields)
    except Exception as error:
        raise SignatureError(f"cannot build a model of {entry.name}'s settings ({entry.dist}): {error}") from error


def _strict(own: type[BaseModel]) -> type[BaseModel]:
    """Return a subclass of ``own`` that forbids unknown settings."""
    return cast("type[BaseModel]", new_class(own.__name__, (own,), {"extra": "forbid"}))


def setting_names(model: type[BaseModel]) -> list[str]:
    """Return the names of the settings, in positional order."""
    return [field.alias or name for name, field in model.model_fields.items()]
