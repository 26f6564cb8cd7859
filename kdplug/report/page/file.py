"""Read the files of a run, with limits on their size and errors that name the file, the place in it, and a fix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kdplug.errors import RunError
from kdplug.host.bounded_json import Bounds, json_value, read_json
from kdplug.host.name import cut

Model = TypeVar("Model", bound=BaseModel)

LINE = Bounds(characters=1 << 22, values=1 << 18, key=1 << 12)
"""Size limits for one line of a ``.jsonl`` file."""


def damaged(file: Path, problem: object) -> RunError:
    """Return the error for a file of a run with invalid content."""
    return RunError(f"{file} is damaged: {problem}. To write it again, run the recipe with --resume")


def missing(file: Path) -> RunError:
    """Return the error for a file that is missing from the folder of a run, although completed runs have it."""
    return RunError(
        f"{file} does not exist, so {str(file.parent)!r} is not the folder of a completed run. Pass the output_dir of a "
        "run, or complete the run with kdplug run RECIPE --resume"
    )


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises: ``RunError``."""
    try:
        found = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        raise missing(file) from None
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise damaged(file, error) from error
    if not isinstance(found, dict):
        raise damaged(file, f"it must be a JSON object, but is {cut(repr(found))}")
    return found


def read_lines(file: Path, with_text: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line; a line that does not contain ``with_text`` is not parsed.

    Raises: ``RunError``; ``OSError`` if the file cannot be opened.
    """
    wanted = with_text.encode()
    with file.open("rb") as stream:
        number = 0
        while content := stream.readline(LINE.characters + 1):
            number += 1
            if len(content) > LINE.characters:
                raise damaged(file, f"line {number} has more than {LINE.characters:,} bytes, the maximum")
            if wanted not in content:
                continue
            try:
                found = json_value(content.decode("utf-8"), LINE)
            except ValueError as error:
                raise damaged(file, f"line {number}: {error}") from error
            if not isinstance(found, dict):
                raise damaged(file, f"line {number} must be a JSON object, but is {cut(repr(found))}")
            yield number, found


def validated(model: type[Model], data: object, file: Path, place: str = "") -> Model:
    """Return ``data`` as ``model``. Raises: ``RunError`` with the path of the first invalid value."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = f"{place}{'.'.join(map(str, first['loc']))}"
        given = "" if first["type"] in ("missing", "value_error") else f", got {cut(repr(first['input']))}"
        message = first["msg"].removeprefix("Value error, ")
        raise damaged(file, f"{path}: {message}{given}" if path else f"{message}{given}") from None
