"""The closed form that a loss declares, ready to be called."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from kdplug.contracts.closed_form import ATTRIBUTE
from kdplug.errors import SignatureError
from kdplug.host.component import Component


def closed_form_of(component: Component) -> Any:
    """The closed form of a loss with the loss's settings bound, ``None`` where it declares none.

    Raises: ``SignatureError`` where it takes other settings than the loss.
    """
    entry = component.entry
    rows = getattr(entry.load(), ATTRIBUTE, None)
    if rows is None or entry.positional:
        return None
    if entry.signature.makes:
        return getattr(component.target, ATTRIBUTE)
    parameters = inspect.signature(rows).parameters.values()
    takes = {one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
    if takes != set(entry.signature.settings):
        raise SignatureError(
            f"the closed form of {entry.qualified} takes the settings {sorted(takes)}, and the loss itself "
            f"{sorted(entry.signature.settings)}: they must be the same"
        )
    return partial(rows, **(component.target.keywords if isinstance(component.target, partial) else {}))
