"""A teacher that a run trained is a folder that the next recipe names."""

from __future__ import annotations

import hashlib
import io
import json
import shutil

import pytest
from rich.console import Console
from safetensors.torch import load_file
from task_scene import BERT, GPT2, TEXTS, TOKENIZER, TRAINED, recipe, reviews, write_csv

from kdplug.errors import ConfigError, RunError
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.run import run_recipe

_ROWS = ["The DET\ndog NOUN\nruns VERB\n", "A DET\ncat NOUN\n", "Birds NOUN\nsing VERB\n", "The DET\nfilm NOUN\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_csv(folder / "reviews.csv", reviews(24))
    write_csv(folder / "numbers.csv", [{**row, "label": int(row["label"] == "pos")} for row in reviews(24)])
    write_csv(folder / "scores.csv", [{**row, "label": place / 24} for place, row in enumerate(reviews(24))])
    (folder / "tags.conll").write_text("\n".join(_ROWS * 4))
    (folder / "text.txt").write_text(" ".join(TEXTS) * 30)
    return folder


def settings(folder, name, **changes):
    file = {
        "text-classification": "reviews.csv",
        "token-classification": "tags.conll",
        "regression": "scores.csv",
        "causal-lm": "text.txt",
    }[name]
    config = GPT2 if name == "causal-lm" else BERT
    return {
        "name": name,
        "data": {"train": str(folder / file), "test": 0.25},
        "tokenizer": TOKENIZER,
        "teacher": {"config": config, **TRAINED},
        "student": {"from_teacher": {"layers": [0]}},
        "max_length": 24,
        **changes,
    }


@pytest.fixture(scope="module")
def saved_once(folder, tmp_path_factory):
    """The settings of a recipe, and the teacher that it saved."""
    given, out = settings(folder, "text-classification"), tmp_path_factory.mktemp("saved")
    run_recipe(recipe(given, out))
    return given, out / "teacher"


def kd(name):
    return {"kd_loss_type": "mse"} if name == "regression" else {}


def named(given, teacher):
    """The settings of the next recipe, which names a saved teacher and no tokenizer."""
    return {**{key: value for key, value in given.items() if key != "tokenizer"}, "teacher": teacher}


TASKS = ["text-classification", "token-classification", "causal-lm", "regression"]


@pytest.mark.parametrize("name", TASKS)
def test_the_next_recipe_names_the_saved_teacher_and_measures_the_same(folder, tmp_path, name):
    given, written = settings(folder, name), io.StringIO()
    done = run_recipe(recipe(given, tmp_path / "one", **kd(name)), console=Console(file=written, width=500))
    saved = tmp_path / "one" / "teacher"
    assert "model, teacher, curves.png" in written.getvalue()
    for teacher in (str(saved), {"path": str(saved)}):
        again = recipe(named(given, teacher), tmp_path / "two", **kd(name))
        assert plan_recipe(again).steps["teacher"] == 0
        assert run_recipe(again, overwrite=True).teacher.metrics == done.teacher.metrics
    assert not (tmp_path / "two" / "teacher" / "config.json").exists()


def test_numbers_as_labels_are_the_same_classes_in_the_next_recipe(folder, tmp_path):
    given = settings(folder, "text-classification", data={"train": str(folder / "numbers.csv"), "test": 0.25})
    done = run_recipe(recipe(given, tmp_path / "one"))
    again = recipe(named(given, str(tmp_path / "one" / "teacher")), tmp_path / "two")
    assert run_recipe(again).teacher.metrics == done.teacher.metrics


def test_a_factored_teacher_is_saved_whole(folder, tmp_path):
    given = settings(folder, "causal-lm", factored=True)
    done = run_recipe(recipe(given, tmp_path / "one", kd_loss_type="kl"))
    again = named(given, str(tmp_path / "one" / "teacher"))
    assert run_recipe(recipe(again, tmp_path / "two", kd_loss_type="kl")).teacher.metrics == done.teacher.metrics


def test_a_teacher_with_another_tokenizer_than_the_students_is_saved_with_its_own(folder, tmp_path):
    from transformers import AutoTokenizer

    student = {"config": {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64}}
    given = settings(folder, "causal-lm", student=student, student_tokenizer={"train": "bytes-bpe", "vocab": 270})
    across = {"kd_loss_type": "uld", "hard_label_weight": 1}
    done = run_recipe(recipe(given, tmp_path / "one", **across))
    sizes = [len(AutoTokenizer.from_pretrained(tmp_path / "one" / name)) for name in ("teacher", "model")]
    assert sizes[0] > sizes[1]
    again = named(given, str(tmp_path / "one" / "teacher"))
    assert run_recipe(recipe(again, tmp_path / "two", **across)).teacher.metrics == done.teacher.metrics


def test_the_folder_has_checksums_the_record_and_a_card(folder, tmp_path):
    made = recipe(settings(folder, "text-classification"), tmp_path)
    run_recipe(made)
    saved = tmp_path / "teacher"
    sums = dict(reversed(line.split("  ")) for line in (saved / "SHA256SUMS").read_text().splitlines())
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "kdplug-run.json"} <= sums.keys()
    assert all(hashlib.sha256((saved / name).read_bytes()).hexdigest() == one for name, one in sums.items())
    records = [json.loads((place / "kdplug-run.json").read_text()) for place in (saved, tmp_path)]
    assert records[0] == records[1]
    assert "A teacher for `kdplug-tasks:text-classification`, trained with kdplug" in (saved / "README.md").read_text()
    assert f"first and saved to `{saved}`" in (tmp_path / "model" / "README.md").read_text()


def test_a_killed_run_resumes_to_the_same_teacher_which_was_there_before_the_distillation(
    folder, tmp_path, monkeypatch
):
    given = settings(folder, "text-classification")
    run_recipe(recipe(given, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(RecipeRunner, "distilled", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_recipe(recipe(given, tmp_path / "killed"))
    saved = tmp_path / "killed" / "teacher"
    weights = (tmp_path / "whole" / "teacher" / "model.safetensors").read_bytes()
    assert (saved / "model.safetensors").read_bytes() == weights
    (saved / "config.json").unlink()  # as if the run had been killed while it saved
    (saved / ".model-abcdefgh").mkdir()
    run_recipe(recipe(given, tmp_path / "killed"), resume=True)
    assert (saved / "model.safetensors").read_bytes() == weights
    assert (saved / "config.json").is_file()
    assert not (saved / ".model-abcdefgh").exists()


def test_a_finished_run_that_is_resumed_keeps_its_teacher_even_if_it_is_killed(folder, tmp_path, monkeypatch):
    given, saved = settings(folder, "text-classification"), tmp_path / "teacher"
    run_recipe(recipe(given, tmp_path))
    files = [file for file in saved.iterdir() if file.is_file() and file.name not in (".run", "log.jsonl")]
    before = {file: (file.read_bytes(), file.stat().st_ino) for file in files}
    with monkeypatch.context() as patch:
        patch.setattr(RecipeRunner, "teacher", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_recipe(recipe(given, tmp_path), resume=True)
    assert {file: (file.read_bytes(), file.stat().st_ino) for file in files} == before
    run_recipe(recipe(given, tmp_path), resume=True)
    assert {file: (file.read_bytes(), file.stat().st_ino) for file in files} == before


@pytest.mark.parametrize("name", ["text-classification", "token-classification"])
def test_the_tokenizer_of_a_saved_model_is_the_same_after_a_resume(folder, tmp_path, name):
    run_recipe(recipe(settings(folder, name), tmp_path))
    saved = [tmp_path / place / "tokenizer.json" for place in ("teacher", "model")]
    before = [file.read_bytes() for file in saved]
    assert {json.loads(content)["truncation"] for content in before} == {None}
    (saved[0].parent / "config.json").unlink()  # so the teacher is saved again
    run_recipe(recipe(settings(folder, name), tmp_path), resume=True)
    assert [file.read_bytes() for file in saved] == before


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_saved_teacher_without_one_of_its_files_is_an_error_that_names_it(saved_once, tmp_path, missing):
    given, saved = saved_once
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "copy" / missing).unlink()
    with pytest.raises(ConfigError, match=rf"^task\.teacher.* is incomplete: .*{missing}"):
        plan_recipe(recipe(named(given, str(tmp_path / "copy")), tmp_path / "two"))


def test_an_overwritten_run_replaces_the_teacher_and_one_that_trains_none_removes_it(folder, tmp_path):
    given, out = settings(folder, "text-classification"), tmp_path / "out"
    run_recipe(recipe(given, out))
    first = load_file(out / "teacher" / "model.safetensors")
    with pytest.raises(RunError, match="of an earlier run"):
        run_recipe(recipe(given, out, "seed=1"))
    run_recipe(recipe(given, out, "seed=1"), overwrite=True)
    second = load_file(out / "teacher" / "model.safetensors")
    assert any((first[name] != second[name]).any() for name in first)
    (out / "teacher").rename(tmp_path / "kept")
    (out / "teacher").mkdir()
    (out / "teacher" / "kdplug-run.json").touch()
    run_recipe(recipe(named(given, str(tmp_path / "kept")), out), overwrite=True)
    assert not (out / "teacher" / "kdplug-run.json").exists()


def test_a_run_does_not_read_the_teacher_that_it_would_delete(folder, tmp_path, monkeypatch):
    given, out = settings(folder, "text-classification"), tmp_path / "out"
    run_recipe(recipe(given, out))
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (str(out / "teacher"), "~/out/teacher"):
        with pytest.raises(
            ConfigError, match=r"^task\.teacher.*is the folder to which an earlier run wrote its teacher"
        ):
            run_recipe(recipe(named(given, path), out), overwrite=True)
    assert (out / "teacher" / "model.safetensors").is_file()


def test_a_folder_that_no_run_saved_is_kept(folder, tmp_path):
    mine = tmp_path / "teacher" / "config.json"
    mine.parent.mkdir()
    mine.write_text("{}")
    with pytest.raises(
        RunError, match=r"^output_dir: the teacher would be saved to .*teacher', but that folder was not"
    ):
        run_recipe(recipe(settings(folder, "text-classification"), tmp_path), overwrite=True)
    assert mine.read_text() == "{}"


def test_a_cache_keeps_the_teacher_that_it_was_built_with(folder, tmp_path):
    given, out = settings(folder, "text-classification"), tmp_path / "cache"
    cache_recipe(recipe(given, tmp_path / "unused"), out)
    done = run_recipe(recipe(given, tmp_path / "one", f"training.teacher_cache={out}"))
    assert f"first and saved to `{out}/teacher`" in (tmp_path / "one" / "model" / "README.md").read_text()
    again = recipe(named(given, str(out / "teacher")), tmp_path / "two")
    assert run_recipe(again).teacher.metrics == done.teacher.metrics
