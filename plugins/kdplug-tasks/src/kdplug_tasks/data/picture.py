"""Pictures in folders, and arrays of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdplug_tasks.data.table import Table, without_rows

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def read_folder(folder: Path, table: Table) -> Table:
    """``image``, a path, and ``label``, the name of the folder that a picture lies in, in the order of their names.

    Pictures that lie in the folder itself have no label.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.casefold() in _ENDINGS)
    if not files:
        raise without_rows(table)
    columns: dict[str, list[Any]] = {"image": [str(file) for file in files]}
    labels = [None if file.parent == folder else file.relative_to(folder).parts[0] for file in files]
    if any(labels):
        columns["label"] = labels
    return Table(table.origin, table.field, columns)


def read_arrays(file: Path, table: Table) -> dict[str, Any]:
    """The arrays of an NPZ file, ``image`` and ``label`` say: one row for each item along their first axis.

    Raises: ``ConfigError`` where it is none, or they differ in length.
    """
    import numpy

    try:
        with file.open("rb") as stream, numpy.load(stream, allow_pickle=False) as archive:
            arrays = {name: numpy.asarray(archive[name]) for name in archive.files}
    except Exception as error:  # of zipfile, of zlib, of what parses the header of an array
        raise table.error(f"it is no NPZ file of arrays: {error}") from error
    for name, array in arrays.items():
        if not array.ndim:
            raise table.error(f"its array {name!r} is a single value, and a column has one for each row")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise table.error(
            f"its arrays differ in length: {', '.join(f'{name} {size}' for name, size in lengths.items())}"
        )
    return {name: array if array.ndim > 1 else array.tolist() for name, array in arrays.items()}
