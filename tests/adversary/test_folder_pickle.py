"""A model folder or a dataset that holds a pickle, or a program for another interpreter: nothing of it is read or run."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from code_scene import TEXT, Scene
from safetensors.torch import load_file
from task_scene import BERT, RESNET


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path, {**BERT, "num_hidden_layers": 2}, TEXT)


@pytest.fixture
def pictures(tmp_path):
    return Scene(tmp_path, RESNET, "AutoModelForImageClassification")


class Payload:
    """Leaves the mark when it is unpickled without a restriction."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def unpickled(monkeypatch):
    """The files that ``torch.load`` was given."""
    read: list[str] = []

    def load(file, *_, **__):
        read.append(str(file))
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", load)
    return read


unpickle = pytest.mark.attack("weights or data that are a pickle")


@unpickle
@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin"])
def test_weights_in_a_pickle(scene, unpickled, side, name):
    other = scene.folder / "other"
    shutil.copytree(scene.teacher, other)
    weights = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    torch.save({**weights, "x": Payload(scene.mark)}, other / name)
    if "-of-" in name:
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
        (other / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    scene.refused("M.from_pretrained(", **{side: str(other)})
    assert unpickled == []


@unpickle
def test_an_index_of_safetensors_that_names_a_pickle(scene, unpickled):
    weights = load_file(scene.teacher / "model.safetensors")
    (scene.teacher / "model.safetensors").unlink()
    torch.save({**weights, "x": Payload(scene.mark)}, scene.teacher / "a.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "a.bin")}
    (scene.teacher / "model.safetensors.index.json").write_text(json.dumps(index))
    scene.refused("'a.bin'")
    assert unpickled == []


@unpickle
def test_a_config_that_names_a_pickle(scene, unpickled):
    weights = load_file(scene.teacher / "model.safetensors")
    torch.save({**weights, "x": Payload(scene.mark)}, scene.teacher / "adapter_model.bin")
    scene.change("config.json", transformers_weights="adapter_model.bin")
    scene.refused("'adapter_model.bin'")
    assert unpickled == []


@unpickle
def test_an_archive_of_arrays_with_an_object_in_it(pictures):
    numpy.savez(pictures.data, image=numpy.array([Payload(pictures.mark)], dtype=object), label=numpy.zeros(1))
    pictures.refused("task.data.train", task="image-classification", student={"config": {"depths": [1, 1]}})


@unpickle
def test_rows_that_pandas_would_unpickle(scene, monkeypatch):
    import pandas

    monkeypatch.chdir(scene.folder)
    pandas.to_pickle(Payload(scene.mark), scene.folder / "train.pkl")
    scene.refused(
        "task.data.dataset: 'pandas' reads pickles", data={"dataset": "pandas", "train": "train", "test": 0.5}
    )


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def interpreted(monkeypatch):
    """What was handed to Ghostscript."""
    import PIL.EpsImagePlugin

    given: list[object] = []

    def run(*arguments, **_):
        from PIL import Image

        given.append(arguments)
        return Image.new("RGB", (8, 8)).im

    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", run)
    return given


@pytest.mark.attack("a picture is a program for another interpreter")
@pytest.mark.parametrize("source", ["files", "dataset"])
def test_postscript_in_a_picture(pictures, interpreted, source):
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    for name in ("a", "b"):
        for place, content in enumerate([POSTSCRIPT, *[picture.getvalue()] * 4]):
            file = pictures.folder / "pictures" / name / f"{place}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    folder = str(pictures.folder / "pictures")
    data = {"train": folder, "test": 0.5} if source == "files" else {"dataset": folder, "train": "train", "test": 0.5}
    pictures.change("config.json", id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    settings = {"task": "image-classification", "student": {"config": {"depths": [1, 1]}}, "data": data}
    pictures.refused("the image cannot be read", **settings)
    assert interpreted == []
