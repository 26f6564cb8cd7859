"""Read the recipe file of a command and apply the values that its options override."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdplug.errors import KdplugError

if TYPE_CHECKING:
    from kdplug.config.recipe import Recipe
    from kdplug.config.text import Document


@contextmanager
def chosen_recipe(file: Path, changes: Sequence[str] | None, **options: Any) -> Iterator[Recipe]:
    """Yield the recipe in ``file`` with the changes of ``--set``, and with ``options`` that are not ``None``.

    An error that is raised in the block names where its value was set: the option, or the line of the file.
    """
    from kdplug.config.recipe import Recipe
    from kdplug.config.text import read_document

    recipe, document = Recipe.from_file(file), read_document(file)
    given = {key: json.dumps(value) for key, value in options.items() if value is not None}
    overrides = [*(changes or []), *(f"{key}={value}" for key, value in given.items())]
    try:
        yield recipe.with_overrides(overrides, names_options=True)
    except KdplugError as error:
        if error.field.partition(".")[0] in Recipe.model_fields and "(--set " not in error.message:
            error.message += f"   ({_place(error.field, overrides, document)})"
        for key in given:
            error.message = error.message.replace(f"(--set {key})", f"(--{key.replace('_', '-')})")
        raise


def _place(field: str, overrides: Sequence[str], document: Document) -> str:
    from kdplug.config.override import source_of

    if itself := source_of(field, overrides):
        return itself
    is_written = field.partition(".")[0] in document.data
    inside = source_of(field, overrides, with_inner=True)
    return ", ".join(filter(None, (document.place(field if is_written else ""), inside)))
