"""A pipe, a socket or a device where a file is expected. Each is an error at once, and never a wait."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from task_scene import BERT, save_model, tokenizer

from kdplug import ConfigError, KdplugError, Recipe
from kdplug.host.bounded_json import read_json
from kdplug.host.lock import check_environment
from kdplug_tasks.data.file import read_file
from kdplug_tasks.data.hub import read_split
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.data.table import Table
from kdplug_tasks.images.image import Images
from kdplug_tasks.images.picture import read_picture
from kdplug_tasks.models.config import load_config
from kdplug_tasks.text.tokenizer import load_tokenizer

SECONDS = 60


@pytest.fixture(autouse=True)
def _no_wait() -> Iterator[None]:
    """End a test that waits."""

    def late(*_: object) -> None:
        raise TimeoutError(f"it waited for {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def listening(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
    return path


def device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


SPECIAL: dict[str, Callable[[Path], Path]] = {"pipe": pipe, "socket": listening, "device": device}
ONLY_REGULAR = "is a pipe, a socket or a device, but only regular files can be read"


@pytest.mark.attack("a pipe, socket or device in the place of a file")
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet", "conll", "conllu", "txt", "npz"])
def test_a_data_file_that_is_not_regular_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, ending: str
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket may have 108 characters
    file = SPECIAL[kind](Path(f"rows.{ending}"))
    with pytest.raises(ConfigError, match=ONLY_REGULAR):
        read_file(str(file), None, "data.train")


@pytest.mark.attack("a pipe, socket or device in the place of a file")
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("read", [Recipe.from_file, read_json, check_environment])
@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_config_or_record_that_is_not_regular_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, read: Callable[[Path], Any], ending: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = SPECIAL[kind](Path(f"recipe.{ending}"))
    with pytest.raises(KdplugError, match=ONLY_REGULAR):
        read(file)


@pytest.mark.attack("a pipe, socket or device in the place of a file")
@pytest.mark.parametrize("cell", ["a.png", {"path": "a.png"}, {"path": "a.png", "bytes": None}])
def test_a_picture_that_is_not_regular_is_an_error(tmp_path: Path, cell: Any) -> None:
    pipe(tmp_path / "a.png")
    table = Table(str(tmp_path / "rows.jsonl"), "data.train", {"image": [cell]})
    with pytest.raises(ConfigError, match=ONLY_REGULAR):
        read_picture(cell, 3, table, 0)


@pytest.mark.attack("a pipe, socket or device in the place of a file")
def test_a_folder_of_pictures_with_one_that_is_not_regular_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pipe(tmp_path / "a" / "a.png")
    table = read_file(str(tmp_path), None, "data.train")
    with pytest.raises(ConfigError, match=ONLY_REGULAR):
        Images(["a", "b"], None).examples(table, optional=False)


@pytest.mark.attack("a pipe, socket or device in the place of a file")
def test_a_dataset_folder_with_a_file_that_is_not_regular_is_an_error(tmp_path: Path) -> None:
    pipe(tmp_path / "train.csv")
    settings = DataSettings(dataset=str(tmp_path), test=0.5)
    with pytest.raises(ConfigError, match=ONLY_REGULAR):
        read_split(settings, "train", "data.train")


@pytest.mark.attack("a pipe, socket or device in the place of a file")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "adapter_config.json", "odd"])
def test_a_model_folder_with_a_file_that_is_not_regular_is_an_error(tmp_path: Path, name: str) -> None:
    brings = tokenizer()
    folder = save_model(tmp_path / "model", "AutoModel", BERT, brings=brings, vocab_size=len(brings))
    pipe(Path(folder) / name)
    for load in (load_config, load_tokenizer):
        with pytest.raises(ConfigError, match=f"its {name} {ONLY_REGULAR}"):
            load(folder, "teacher.path")


@pytest.mark.attack("pictures whose whole numbers are 0 and 1")
@pytest.mark.parametrize("make", [numpy.asarray, lambda found: found.tolist(), lambda found: found.astype(numpy.int64)])
def test_pictures_of_0_and_1_are_not_read_as_black_ones(make: Callable[[numpy.ndarray], Any]) -> None:
    pixels = numpy.random.default_rng(0).integers(0, 2, (4, 8, 8, 1), numpy.uint8)
    images = Images(["a", "b"], None)
    images.channels = 1

    def examples(found: Any) -> Any:
        return images.examples(Table("rows.npz", "data.train", {"image": make(found)}), optional=True)

    with pytest.raises(
        ConfigError,
        match=r"integers have the range 0 to 255, .* Multiply the values by 255, or store the values as floats",
    ):
        examples(pixels)
    pixels[3, 0, 0, 0] = 2
    assert len(examples(pixels)) == 4
