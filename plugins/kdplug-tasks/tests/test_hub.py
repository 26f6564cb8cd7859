"""Hub names are an error at once if they are neither a folder nor cached and the hub cannot be reached."""

from __future__ import annotations

from time import monotonic

import pytest
from task_scene import BERT, TRAINED, reviews, task_of, write_csv

from kdplug import ConfigError
from kdplug_tasks.data.hub import check_hub
from kdplug_tasks.models.config import check_path

NOBODY = "nobody/nothing"


@pytest.fixture
def unreachable(tmp_path, monkeypatch):
    """A hub that refuses connections, and an empty cache, which is returned."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return cache


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"teacher": NOBODY}, "teacher.path"),
        ({"student": {"path": NOBODY}}, "student.path"),
        ({"tokenizer": NOBODY}, "tokenizer"),
        ({"data": {"dataset": NOBODY, "train": "train", "test": "test"}}, "data.dataset"),
    ],
)
def test_a_name_that_is_not_cached_is_an_error_without_retries(tmp_path, unreachable, changes, field):
    rows = write_csv(tmp_path / "rows.csv", reviews(8))
    settings = {
        "name": "text-classification",
        "data": {"train": rows, "test": rows},
        "teacher": {"config": BERT, **TRAINED},
        "tokenizer": "bytes",
        "student": {"config": {"num_hidden_layers": 1}},
        "max_length": 24,
    }
    task, start = task_of(**{**settings, **changes}), monotonic()
    with pytest.raises(ConfigError, match=rf"^{field}: '{NOBODY}' is not a folder here, and the hub cannot be reached"):
        task.check()
    assert monotonic() - start < 20  # the hub's client retries for 24 seconds per file


def test_a_cached_name_needs_no_hub(unreachable):
    (unreachable / "models--nobody--nothing").mkdir()
    check_path(NOBODY, "teacher.path")


def test_offline_mode_is_respected(unreachable, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("kdplug_tasks.data.hub._is_reachable", pytest.fail)
    with pytest.raises(ConfigError, match="is not in the local cache of the hub, and HF_HUB_OFFLINE is set"):
        check_hub(NOBODY, "teacher.path", "model")


def test_a_name_that_is_too_long_for_the_cache_is_an_error(unreachable):
    with pytest.raises(ConfigError, match="the hub cannot be reached"):
        check_path("a" * 250, "teacher.path")


@pytest.mark.parametrize("path", ["a" * 300, "/tmp/" + "a" * 300])
def test_a_student_path_that_is_too_long_names_its_setting(tmp_path, path):
    rows = write_csv(tmp_path / "rows.csv", reviews(8))
    data = {"train": rows, "test": rows}
    teacher = {"config": BERT, **TRAINED}
    task = task_of(
        name="text-classification", data=data, teacher=teacher, tokenizer="bytes", student={"path": path}, max_length=24
    )
    with pytest.raises(ConfigError, match=r"^student\.path: there is no folder .*File name too long"):
        task.check()
