"""Read images as arrays."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
from PIL import Image, ImageOps

from kdplug_tasks.data.table import Table
from kdplug_tasks.regular_file import NOT_REGULAR, is_special

_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats to open, regardless of the extension: PIL passes PostScript, which is a program, to Ghostscript."""


def read_picture(cell: Any, channels: int, table: Table, row: int) -> numpy.ndarray:
    """Return the image in a cell as ``uint8 [height, width, channels]``.

    A cell is a path (absolute, or relative to the table's file), bytes, an image of ``datasets``, or an array
    ``[height, width]``, ``[height, width, channels]`` or ``[channels, height, width]`` of ``uint8`` or of floats in [0,
    1].

    Raises: ``ConfigError``.
    """
    found = _opened(cell, table, row)
    if isinstance(found, numpy.ndarray):
        return _array(found, channels, table, row)
    if found.mode in ("I", "F") or found.mode.startswith("I;16"):
        raise table.error(
            f"the image has more than 8 bits per channel (PIL mode {found.mode!r}), and conversion would clip its values at 255. "
            "Scale the image to 8 bits first",
            row,
        )
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None:
        raise table.error(
            f"an image file has 1, 3 or 4 channels, but the model takes {channels}. Store the images as arrays", row
        )
    pixels = numpy.asarray(found.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _opened(cell: Any, table: Table, row: int) -> Any:
    is_of_dataset = isinstance(cell, dict)
    if is_of_dataset:
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, Image.Image):
        return cell
    if isinstance(cell, (list, numpy.ndarray)):
        try:
            return numpy.asarray(cell)
        except (ValueError, OverflowError) as error:  # rows of different lengths
            raise table.error(f"the list is not an array of numbers: {error}", row) from error
    if not isinstance(cell, (str, bytes)):
        raise table.error(f"an image must be a path, bytes or an array, got {type(cell).__name__}", row)
    source: Any = io.BytesIO(cell) if isinstance(cell, bytes) else find_picture(cell, table)
    if isinstance(source, Path) and is_special(source):
        raise table.error(f"{cell!r} {NOT_REGULAR}", row)
    try:
        with Image.open(source, formats=_FORMATS) as image:
            image.load()
            return ImageOps.exif_transpose(image) if is_of_dataset else image  # as datasets does
    except Exception as error:  # decoders of damaged files raise many types; PIL has its own for too many pixels
        raise table.error(f"the image cannot be read: {error}", row) from error


def check_range(table: Table) -> None:
    """Raise ``ConfigError`` if all images of a column are integers of at most 1.

    Integers have the range 0 to 255, so these images would all be nearly black.
    """
    cells = table.columns["image"]
    if all(isinstance(cell, (list, numpy.ndarray)) and _is_binary(cell) for cell in cells):
        raise table.error(
            "all pixel values are integers 0 and 1, but integers have the range 0 to 255, so the images are nearly black. Multiply "
            "the values by 255, or store the values as floats in [0, 1]"
        )


def _is_binary(cell: Any) -> bool:
    try:
        found = numpy.asarray(cell)
        return found.dtype.kind in "ui" and bool(found.size) and bool(found.max() <= 1)
    except (ValueError, OverflowError):  # reported when the image is read
        return False


def find_picture(path: str, table: Table) -> Path:
    """Return the path of an image: relative to the table's file if that exists, else as given."""
    sibling = Path(table.origin).parent / path
    with suppress(OSError):  # name too long
        return sibling if sibling.exists() else Path(path)
    return Path(path)


def _array(found: numpy.ndarray, channels: int, table: Table, row: int) -> numpy.ndarray:
    pixels = found[..., None] if found.ndim == 2 else found
    if pixels.ndim == 3 and pixels.shape[-1] != channels and pixels.shape[0] == channels:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, channels):
        wanted = "1 channel" if channels == 1 else f"{channels} channels"
        raise table.error(
            f"an array of shape {list(found.shape)} is not an image with {wanted}: it must be [height, width], [height, "
            f"width, {channels}] or [{channels}, height, width]",
            row,
        )
    if pixels.dtype.kind not in "uif" or not pixels.size:
        raise table.error(
            f"pixel values must be integers or floats, got an array of shape {list(found.shape)} and type {found.dtype}",
            row,
        )
    if pixels.dtype != numpy.uint8:
        if not (pixels.min() >= 0 and pixels.max() <= (1 if pixels.dtype.kind == "f" else 255)):
            raise table.error(
                "pixel values must be floats in [0, 1] or integers in [0, 255], got "
                f"{pixels.dtype} from {pixels.min():g} to {pixels.max():g}",
                row,
            )
        pixels = numpy.round(pixels * 255) if pixels.dtype.kind == "f" else pixels
    return numpy.repeat(pixels, channels // pixels.shape[-1], axis=-1).astype(numpy.uint8)
