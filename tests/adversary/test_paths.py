"""Paths that lead nowhere, that no file system can hold, or to a folder where a file is expected: one line, at once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from error_scene import EXIT_CODES, ErrorScene, refusal
from small_run import make_batches, make_distiller, make_student, sgd
from task_scene import GPT2, TOKENIZER
from typer.testing import CliRunner

from kdplug import ConfigError, RunError
from kdplug.cli.app import app
from kdplug_tasks.data.file import read_file

COMMANDS = pytest.mark.parametrize("command", EXIT_CODES)
AS_ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
LONG = "x" * 300
SAYS_LONG = "File name too long"


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Iterator[None]:
    import datasets.config
    import huggingface_hub.constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> ErrorScene:
    return ErrorScene(tmp_path_factory.mktemp("paths"))


def loop(folder: Path, name: str = "loop") -> Path:
    """A link to itself."""
    path = folder / name
    path.unlink(missing_ok=True)
    path.symlink_to(path)
    return path


def dangling(folder: Path) -> Path:
    path = folder / "dangling"
    path.unlink(missing_ok=True)
    path.symlink_to(folder / "gone")
    return path


PLACES: dict[str, Callable[[Path], object]] = {
    "loop": loop,
    "below a loop": lambda folder: loop(folder) / "x",
    "link to nothing": dangling,
    "NUL": lambda _: "a\0b",
    "NUL below a folder": lambda folder: f"{folder}/a\0b",
    "300 characters": lambda _: LONG,
    "300 characters below a folder": lambda folder: folder / LONG,
    "5,000 characters": lambda folder: f"{folder}/{'x/' * 2500}",
    "below a file": lambda folder: folder / "rows.csv" / "x",
    "home of nobody": lambda _: "~nobody-99/x",
}
OF_A_MODEL = PLACES | {"file": lambda folder: folder / "rows.csv"}
OF_DATA = PLACES | {"folder": lambda folder: folder / "teacher"}

SAYS = {
    "loop": "is a broken link",
    "link to nothing": "is a broken link",
    "300 characters": SAYS_LONG,
    "300 characters below a folder": SAYS_LONG,
    "5,000 characters": f"{SAYS_LONG}|at most 4096 characters",
}
NO_FOLDER = "there is no folder|cannot read the folder"
NOWHERE = f"{NO_FOLDER}|is not a local folder"

MODELS = ["task.teacher", "task.student", "task.tokenizer"]
FIELDS = {"task.teacher": "task.teacher.path", "task.student": "task.student.path"}


@pytest.mark.attack("a path that leads nowhere, or that no file system can hold")
@pytest.mark.parametrize("kind", OF_A_MODEL)
@pytest.mark.parametrize("field", MODELS)
def test_a_model_or_tokenizer_that_is_nowhere(scene: ErrorScene, field: str, kind: str) -> None:
    line = scene.refused("plan", **{field: str(OF_A_MODEL[kind](scene.folder))})
    assert line.startswith(f"{FIELDS.get(field, field)}: ")
    assert re.search(SAYS.get(kind, "is not a folder" if kind == "file" else NOWHERE), line)


@pytest.mark.attack("a path that leads nowhere, or that no file system can hold")
@pytest.mark.parametrize("kind", OF_A_MODEL)
def test_a_tokenizer_of_the_student_that_is_nowhere(scene: ErrorScene, kind: str) -> None:
    task = {
        "name": "causal-lm",
        "data": {"train": scene.file("a.txt", "a good film\n\n" * 40), "test": 0.5},
        "teacher": {"config": GPT2, "train": True},
        "student": {"config": {**GPT2, "n_layer": 1}},
        "tokenizer": TOKENIZER,
        "student_tokenizer": str(OF_A_MODEL[kind](scene.folder)),
        "max_length": 16,
    }
    line = scene.refused("plan", task=task)
    assert line.startswith("task.student_tokenizer: ")
    assert re.search(SAYS.get(kind, "is not a folder" if kind == "file" else NOWHERE), line)


@pytest.mark.attack("a path that leads nowhere, or that no file system can hold")
@pytest.mark.parametrize("kind", OF_DATA)
@pytest.mark.parametrize("part", ["train", "test", "distillation"])
def test_data_that_are_nowhere(scene: ErrorScene, part: str, kind: str) -> None:
    line = scene.refused("plan", **{f"task.data.{part}": str(OF_DATA[kind](scene.folder))})
    assert line.startswith(f"task.data.{part}: ")
    assert re.search(SAYS.get(kind, "a folder without images" if kind == "folder" else "there is no file"), line)


@pytest.mark.attack("a path that leads nowhere, or that no file system can hold")
@pytest.mark.parametrize("field", [*MODELS, "task.data.train"])
def test_a_run_prints_the_line_of_its_plan(scene: ErrorScene, field: str) -> None:
    change = {field: str(loop(scene.folder))}
    assert scene.refused("run", **change) == scene.refused("plan", **change)


@pytest.mark.attack("a path that leads nowhere, or that no file system can hold")
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet", "conll", "conllu", "txt", "npz"])
def test_files_of_every_format_that_are_links_or_folders(tmp_path: Path, ending: str) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.train: .*loop\.{ending}' is a broken link$"):
        read_file(str(loop(tmp_path, f"loop.{ending}")), None, "data.train")
    folder = tmp_path / f"folder.{ending}"
    folder.mkdir()
    with pytest.raises(
        ConfigError,
        match=r"^data\.train: .* it is a folder without images\. .* give the path of a file in this folder$",
    ):
        read_file(str(folder), None, "data.train")
    with pytest.raises(ConfigError, match=r"^data\.train: .* is a folder\. Give the path of a file in this folder$"):
        read_file(str(folder), {"txt": "text"}.get(ending, ending), "data.train")


@pytest.mark.attack("a path that leads nowhere, or that no file system can hold")
@pytest.mark.parametrize("kind", OF_A_MODEL)
def test_a_dataset_that_is_nowhere(scene: ErrorScene, kind: str) -> None:
    data = {"dataset": str(OF_A_MODEL[kind](scene.folder)), "train": "train", "test": 0.5}
    line = scene.refused("plan", longest=800, **{"task.data": data})
    assert line.startswith("task.data.dataset: ")
    assert re.search("is not a local folder|the datasets library cannot load the split 'train' of", line)


OUTPUTS = {
    "output_dir": "output_dir",
    "training.log_dir": "training.log_dir",
    "training.teacher_cache": "training.teacher_cache",
}
OF_AN_OUTPUT = OF_A_MODEL | {"device": lambda _: "/dev/full"}


@pytest.mark.attack("a path that leads nowhere, or that no file system can hold")
@COMMANDS
@pytest.mark.parametrize("kind", OF_AN_OUTPUT)
@pytest.mark.parametrize("field", OUTPUTS)
def test_a_folder_that_cannot_be_written(scene: ErrorScene, command: str, field: str, kind: str) -> None:
    line = scene.refused(command, **{field: str(OF_AN_OUTPUT[kind](scene.folder))})
    assert line.startswith(f"{OUTPUTS[field]}: ")
    says = "broken link|is not a folder|is not a valid folder name|cannot use|at most 4096 characters|there is no such user"
    assert re.search(says, line)


WRONG_FILES = {
    "config.json": ("is a broken link", "transformers cannot load"),
    "tokenizer.json": ("is a broken link", "transformers cannot load the tokenizer"),
    "model.safetensors": ("is a broken link", "no file named model.safetensors"),
}


@pytest.mark.attack("a path that leads nowhere, or that no file system can hold")
@COMMANDS
@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_file_of_a_model_that_is_a_loop_or_a_folder(scene: ErrorScene, command: str, name: str) -> None:
    folder = scene.model("odd", **{"_".join(name.rsplit(".", 1)): None})
    for make, says in zip((lambda: loop(folder, name), (folder / name).mkdir), WRONG_FILES[name], strict=True):
        (folder / name).unlink(missing_ok=True)
        make()
        line = scene.refused(command, **{"task.teacher": str(folder)})
        assert re.search(rf"^task\.teacher\.path: .*{says}", line)


WORDS: dict[str, tuple[str, str]] = {
    "run {}.yaml": ("", "cannot read"),
    "plan {}.json": ("", "cannot read"),
    "run {recipe} --locked {}": ("--locked: ", "cannot read|there is no file"),
    "run {recipe} --output-dir {}": ("output_dir: ", "broken link|not a valid folder name|cannot use|at most 4096"),
    "new {new} --from {}": ("--from: ", "cannot read|there is no file|is a broken link"),
    "new {new} --from {rows} --teacher {}": ("--teacher: ", NO_FOLDER + "|broken link"),
    "cache make {recipe} --out {}": ("training.teacher_cache: ", "broken link|not a valid folder name|cannot use|at most 4096"),
    "cache show {}": ("", "is not a teacher cache|cannot read"),
    "plugins new kdplug-x --kind loss --dir {}": ("--dir: ", "cannot write to"),
}  # fmt: skip


@pytest.mark.attack("a path that leads nowhere, or that no file system can hold")
@pytest.mark.parametrize("kind", ["loop", "below a loop", "300 characters below a folder", "5,000 characters"])
@pytest.mark.parametrize("words", WORDS)
def test_a_path_on_the_command_line(scene: ErrorScene, words: str, kind: str) -> None:

    place = PLACES[kind](scene.folder)
    if "}." in words:
        place = loop(scene.folder, "loop" + words[-5:])
        words = words[:-5]
    recipe = scene.file("recipe.json", json.dumps(scene.recipe()))
    named = {"recipe": recipe, "new": scene.folder / "new.yaml", "rows": scene.data}
    field, says = WORDS.get(words, ("", "cannot read"))
    first, *rest = [word.format(place, **named) for word in words.split()]
    line = refusal(first, *rest, longest=6000)
    assert line.startswith(field)
    assert re.search(says, line)


@pytest.mark.attack("a file that may not be read")
@AS_ROOT
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "rows.csv"])
def test_a_file_without_permission(scene: ErrorScene, name: str) -> None:
    folder = scene.model("locked")
    file = folder / name if name != "rows.csv" else Path(scene.file("locked.csv", scene.data.read_bytes()))
    file.chmod(0)
    change = {"task.data.train": str(file)} if name == "rows.csv" else {"task.teacher": str(folder)}
    assert "ermission denied" in scene.refused("plan", **change)


@pytest.mark.attack("a path in the home folder")
@pytest.mark.parametrize(
    "field", ["task.teacher", "task.student", "task.tokenizer", "task.data.train", "task.data.test"]
)
def test_a_leading_tilde_is_the_home_folder(scene: ErrorScene, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    monkeypatch.setenv("HOME", str(scene.folder))
    scene.accepted(**{field: "~/rows.csv" if "data" in field else "~/teacher"})


@pytest.mark.attack("a path in the home folder")
def test_a_new_recipe_from_files_in_the_home_folder(scene: ErrorScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(scene.folder))
    written = scene.folder / "home.yaml"
    done = CliRunner().invoke(app, ["new", str(written), "--from=~/rows.csv", "--teacher=~/teacher"])
    assert done.exit_code == 0, done.stderr
    assert str(scene.data) in written.read_text()


@pytest.mark.attack("a path in the home folder")
def test_a_teacher_where_the_run_writes_its_student_is_found_through_a_tilde(
    scene: ErrorScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(scene.folder))
    (scene.model("mine").parent / "runs").mkdir(exist_ok=True)
    (scene.folder / "mine").rename(scene.folder / "runs" / "model")
    line = scene.refused("plan", **{"task.teacher": "~/runs/model", "output_dir": str(scene.folder / "runs")})
    assert line.startswith("task.teacher: '~/runs/model' is the folder to which this run writes its student")


@pytest.mark.attack("a path that leads nowhere, or that no file system can hold")
@pytest.mark.parametrize(
    "kind", ["loop", "below a loop", "NUL below a folder", "300 characters below a folder", "below a file"]
)
@pytest.mark.parametrize("field", ["output_dir", "teacher_cache"])
def test_python_raises_a_run_error(tmp_path: Path, field: str, kind: str) -> None:
    (tmp_path / "rows.csv").touch()
    place = str(PLACES[kind](tmp_path))
    student = make_student()
    training = {"teacher_cache": place} if field == "teacher_cache" else {}
    config = {"is_caching_logits": True} if field == "teacher_cache" else {}
    folder = place if field == "output_dir" else tmp_path / "out"
    distiller = make_distiller(folder, student, training=training, **config)
    with pytest.raises(RunError) as caught:
        distiller.train(sgd(student), make_batches(2), num_epochs=1)
    assert "\n" not in str(caught.value)
