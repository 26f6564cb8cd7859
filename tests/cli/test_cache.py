"""``kdplug cache``: what it takes and what it prints."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from kdplug.cli.app import app

RECIPE = """
task: {name: digits, teacher_epochs: 1}
distillation: {kd_loss_type: ce}
training: {num_epochs: 1, batch_size: 200, device: cpu, ckpt_frequency: 0, teacher_cache_codec: {name: topk_tail, k: 3, bits: 8}}
"""


def call(*words):
    return CliRunner().invoke(app, ["cache", *map(str, words)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    (folder / "recipe.yaml").write_text(RECIPE)
    done = call(folder / "recipe.yaml", "--out", folder / "kept", "--set", "training.batch_size=300")
    assert done.exit_code == 0, done.output
    return folder / "kept"


def test_a_recipe_needs_no_word_before_it(made):
    assert (made / "origin.json").is_file()
    assert json.loads((made / "manifest.json").read_text())["extent"]["batch"] == 300


def test_what_is_kept_is_shown(made):
    shown = call("show", made).output
    assert f"{made}: complete" in shown
    for words in (
        "1,000 of 1,000 (100.0% covered)",
        "name: kdplug-logits:topk_tail, k: 3, bits: 8",
        "kept mass at temperature 4",
        "temperature",
    ):
        assert words in shown


def test_for_programs_it_is_one_object(made):
    found = json.loads(call("show", made, "--json").output)
    assert found["complete"] is True
    assert 3 < found["bytes_per_item"] < 40
    assert 0 < found["lowest_kept_mass"] <= found["kept_mass"] <= 1
    assert found["fingerprint"]["temperature"] == found["temperature"] == 4.0
    assert found["classes"] == [10]


def test_a_byte_that_changed_is_found_by_check(made, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in made.glob("*.*"):
        (copy / file.name).write_bytes(file.read_bytes())
    file = copy / "shard-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    assert call("show", copy).exit_code == 0
    checked = call("show", copy, "--check")
    assert checked.exit_code == 2
    assert "is damaged" in checked.output
    file.write_bytes(content[:-1])
    cut = call("show", copy)
    assert cut.exit_code == 2
    assert " were written" in cut.output


def test_the_help_says_what_is_found_without_check():
    words = " ".join(call("show", "--help").output.replace("│", " ").split())
    assert "Exits with status 2 if the manifest or a record is damaged, or a shard has the wrong size" in words
    assert "Use --check to detect damage inside a shard" in words


def test_a_folder_that_is_no_cache_is_reported(tmp_path):
    shown = call("show", tmp_path)
    assert shown.exit_code == 2
    assert "is not a teacher cache: it contains no manifest.json" in shown.output


DAMAGE = {
    "manifest.json that is nested deep": ("manifest.json", b"[" * 200_000, "has no digest"),
    "manifest.json that is empty": ("manifest.json", b"", "has no digest"),
    "a note that is binary": ("shard-00000.json", bytes(range(256)), "has no digest"),
    "a shard that is empty": ("shard-00000.safetensors", b"", "has 0 bytes, but"),
}


@pytest.mark.parametrize(("name", "content", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_one_error_without_a_traceback(made, tmp_path, name, content, words):
    shutil.copytree(made, tmp_path / "copy")
    (tmp_path / "copy" / name).write_bytes(content)
    shown = call("show", tmp_path / "copy")
    assert isinstance(shown.exception, SystemExit)
    assert shown.exit_code == 2
    assert words in " ".join(shown.output.split())


@pytest.mark.parametrize("path", ["file", "file/below", "a" * 300])
def test_a_path_that_can_be_no_cache_is_an_error(tmp_path, path):
    (tmp_path / "file").touch()
    shown = call("show", tmp_path / path)
    assert isinstance(shown.exception, SystemExit)
    assert shown.exit_code == 2


@pytest.mark.parametrize("path", ["file", "file/below", "a" * 300, "folder"])
def test_what_is_no_cache_is_not_written_to(tmp_path, path):
    (tmp_path / "file").write_text("words")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("words")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    before = sorted(tmp_path.rglob("*"))
    done = call(tmp_path / "recipe.yaml", "--out", tmp_path / path)
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 2
    assert "error: " in done.output
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_must_be_named(made):
    missing = call("recipe.yaml")
    assert missing.exit_code == 2
    assert "--out" in missing.output
