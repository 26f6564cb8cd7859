"""Rows that are damaged, ambiguous or built to break a reader are an error that names the place, and never read as something else."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

import kdplug
from kdplug.recipes.saved_student import check_apart
from kdplug_tasks.data.classes import _of_teacher
from kdplug_tasks.data.file import read_file
from kdplug_tasks.data.label import Labels
from kdplug_tasks.data.table import Table
from kdplug_tasks.images.image import Images
from kdplug_tasks.images.picture import read_picture
from kdplug_tasks.models.config import check_path

TABLE = Table("rows.jsonl", "data.train", {"image": [0]})
HUGE = (
    b"\x89PNG\r\n\x1a\n"
    + struct.pack(">I", 13)
    + (head := b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    + struct.pack(">I", zlib.crc32(head))
)


def png(pixels: numpy.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.attack("pixels of 16 bits that a conversion would cut off at 255")
def test_pixels_of_16_bits_are_refused() -> None:
    with pytest.raises(kdplug.ConfigError, match="more than 8 bits"):
        read_picture(png(numpy.full((4, 4), 40000, numpy.uint16)), 3, TABLE, 0)


@pytest.mark.attack("a cell that is no picture")
@pytest.mark.parametrize(
    "cell",
    [
        HUGE,
        b"P6 16^16 16 255\n",
        "a\0b.png",
        "a" * 5000,
        [[1, 2], [3]],
        [["a", "b"]],
        [[]],
        [[None, 1]],
        [[True, False]],
        numpy.zeros((2, 2), complex),
    ],
)
def test_a_cell_that_is_no_picture_is_named(cell: Any) -> None:
    with pytest.raises(kdplug.ConfigError, match=r"row 1 of rows\.jsonl"):
        read_picture(cell, 3, TABLE, 0)


@pytest.mark.attack("a picture column whose later rows are no paths")
@pytest.mark.parametrize("cell", [None, 5, "a" * 5000])
def test_a_later_cell_that_is_no_path_is_named(cell: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(numpy.zeros((4, 4, 3), numpy.uint8)))
    table = Table(str(tmp_path / "rows.jsonl"), "data.train", {"image": ["a.png", cell]})
    with pytest.raises(kdplug.ConfigError, match="row 2 of"):
        Images(None, None).examples(table, optional=True)


@pytest.mark.attack("JSON with a key twice, or half of a surrogate pair")
@pytest.mark.parametrize("line", ['{"text": "a", "label": 0, "label": 1}', r'{"text": "\ud800 a", "label": 0}'])
def test_json_that_two_readers_read_differently_is_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "\\ud83d\\ude00", "label": 1}\n' + line, encoding="utf-8")
    with pytest.raises(kdplug.ConfigError, match="line 2"):
        read_file(str(file), None, "data.train")


@pytest.mark.attack("lines that end in CR alone, blank lines with spaces in them")
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_end_of_a_line_divides(end: str, tmp_path: Path) -> None:
    (tmp_path / "rows.conll").write_bytes(end.join(["a X", "b Y", "", "c X", ""]).encode())
    rows = read_file(str(tmp_path / "rows.conll"), None, "data.train").columns
    assert rows == {"tokens": [["a", "b"], ["c"]], "tags": [["X", "Y"], ["X"]]}
    (tmp_path / "rows.txt").write_bytes(end.join(["a", " ", "b", "", "", "c", ""]).encode())
    assert read_file(str(tmp_path / "rows.txt"), None, "data.train").columns == {"text": ["a", "b", "c"]}


@pytest.mark.attack("a damaged NPZ or Parquet file")
@pytest.mark.parametrize("content", [b"PK\x03\x04garbage", b"", "npy", "text", "header"])
def test_a_damaged_archive_is_named(content: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.npz"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "npy":
        with file.open("wb") as stream:
            numpy.save(stream, numpy.zeros(3))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(
                "image.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr':[['a'" if content == "header" else b"text"
            )
    with pytest.raises(kdplug.ConfigError, match=r"rows\.npz"):
        read_file(str(file), None, "data.train")


@pytest.mark.attack("a damaged NPZ or Parquet file")
def test_text_of_parquet_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    offsets, text = pyarrow.py_buffer(struct.pack("<3i", 0, 1, 2)), pyarrow.py_buffer(b"\xff\xfe")
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, text])
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "rows.parquet")
    with pytest.raises(kdplug.ConfigError, match=r"rows\.parquet"):
        read_file(str(tmp_path / "rows.parquet"), None, "data.train")


@pytest.mark.attack("a path that no file system takes")
def test_a_path_that_is_too_long_is_named() -> None:
    with pytest.raises(kdplug.ConfigError, match="File name too long"):
        read_file("a" * 5000 + ".csv", None, "data.train")
    with pytest.raises(kdplug.ConfigError, match="File name too long"):
        check_path("a" * 5000, "teacher.path")


@pytest.mark.attack("a path that no file system takes")
@pytest.mark.parametrize("name", ["a\0b", "a" * 300])
def test_an_output_dir_that_cannot_be_is_named(name: str) -> None:
    recipe = kdplug.Recipe.from_dict(
        {"task": "digits", "distillation": {}, "output_dir": name, "training": {"num_steps": 1}}
    )
    with pytest.raises(kdplug.ConfigError, match="is not a valid folder name"):
        check_apart(recipe, object())  # type: ignore[arg-type]


@pytest.mark.attack("a config whose class ids are not the places of its outputs")
@pytest.mark.parametrize("ids", [{0: "a", 7: "b"}, {-1: "a", 0: "b"}])
def test_class_ids_with_gaps_are_refused(ids: dict[int, str]) -> None:
    with pytest.raises(kdplug.ConfigError, match="id2label"):
        _of_teacher(SimpleNamespace(num_labels=2, id2label=ids), None)
    assert _of_teacher(SimpleNamespace(num_labels=2, id2label={0: "a", 1: "b"}), None) == Labels(("a", "b"))
