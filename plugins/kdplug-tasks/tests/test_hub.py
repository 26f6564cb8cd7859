"""Hub names are an error at once if they are neither a folder nor cached and the hub cannot be reached."""

from __future__ import annotations

import logging
import shutil
import socket
import threading
from contextlib import suppress
from time import monotonic

import datasets
import huggingface_hub
import pytest
from task_scene import BERT, TRAINED, reviews, save_model, task_of, tokenizer, write_csv

from kdplug import ConfigError
from kdplug_tasks.data import hub
from kdplug_tasks.data.hub import check_hub
from kdplug_tasks.models.config import check_path

NOBODY = "nobody/nothing"


@pytest.fixture
def unreachable(tmp_path, monkeypatch):
    """A hub that refuses connections, and an empty cache, which is returned."""
    return _use_hub(tmp_path, monkeypatch, "http://127.0.0.1:9")


def _use_hub(tmp_path, monkeypatch, endpoint):
    cache = tmp_path / "cache"
    cache.mkdir()
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    values = {"HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(cache), "ENDPOINT": endpoint}
    for name, value in {**values, "HUGGINGFACE_CO_URL_TEMPLATE": template}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", endpoint)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(hub, "_asked", {})
    monkeypatch.setattr(hub, "_SECONDS", 0.5)
    hub._log_offline.cache_clear()
    return cache


class Server:
    """A hub that takes connections, and answers 404 or nothing at all. ``count`` is the number of connections."""

    def __init__(self, *, answers):
        self.answers, self.held = answers, []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._take, daemon=True).start()

    @property
    def count(self):
        return len(self.held)

    def _take(self):
        with suppress(OSError):  # closed
            while True:
                connection = self.socket.accept()[0]
                self.held.append(connection)
                if self.answers:
                    connection.recv(1 << 16)
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def close(self):
        for one in (self.socket, *self.held):
            one.close()


@pytest.fixture
def server(request):
    made = Server(answers=getattr(request, "param", False))
    yield made
    made.close()


@pytest.fixture
def silent(server, tmp_path, monkeypatch):
    """A hub that takes connections and never answers, and an empty cache, which is returned."""
    return _use_hub(tmp_path, monkeypatch, server.address)


def put_in_cache(cache, name, folder):
    """Store a folder as the hub's client does."""
    revision, repository = "a" * 40, cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(folder, repository / "snapshots" / revision)


def cached_task(tmp_path, cache, **changes):
    """A task whose teacher and student are hub names that are in the cache."""
    words, labels = tokenizer(), {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    config = {**BERT, "vocab_size": len(words)}
    for name in ("teacher", "student"):
        folder = save_model(tmp_path / name, "AutoModelForSequenceClassification", config, brings=words, **labels)
        put_in_cache(cache, f"org/{name}", folder)
    rows = write_csv(tmp_path / "rows.csv", reviews(8))
    settings = {
        "name": "text-classification",
        "data": {"train": rows, "test": rows},
        "teacher": "org/teacher",
        "student": {"path": "org/student"},
        "max_length": 24,
    }
    return task_of(**{**settings, **changes})


def test_cached_models_are_loaded_after_one_request_to_a_hub_that_never_answers(tmp_path, silent, server, caplog):
    task = cached_task(tmp_path, silent)
    with caplog.at_level(logging.WARNING, "kdplug_tasks"):
        task.check()
        task.build_teacher()
        task.build_student()
    assert server.count == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"The hub cannot be reached ({server.address}), so models and datasets are read from its local cache."
    ]
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


def test_cached_models_are_loaded_at_once_if_the_hub_refuses_connections(tmp_path, unreachable, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "_responds", asked.append)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: pytest.fail("it tries again"))
    task = cached_task(tmp_path, unreachable)
    task.check()
    task.build_teacher()
    assert asked == ["http://127.0.0.1:9"]


@pytest.mark.parametrize("name", ["org/other", "org/half"])
def test_a_name_that_is_not_or_only_partly_cached_is_an_error_after_one_request(tmp_path, silent, server, name):
    (silent / "models--org--half" / "refs").mkdir(parents=True)
    task = cached_task(tmp_path, silent, student={"path": name})
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"^student\.path: .*'{name}'"):
            task.check()
    assert server.count == 1


def test_a_hub_that_did_not_answer_is_asked_again_after_five_minutes(silent, server, monkeypatch):
    monkeypatch.setattr(hub, "_AGAIN_SECONDS", 300)
    assert not hub._is_reachable(server.address)
    assert not hub._is_reachable(server.address)
    assert server.count == 1
    monkeypatch.setattr(hub, "_AGAIN_SECONDS", 0)
    assert not hub._is_reachable(server.address)
    assert server.count == 2


@pytest.mark.parametrize("server", [True], indirect=True)
def test_a_hub_that_answers_is_asked_once_and_used(silent, server):
    assert hub._is_reachable(server.address)
    assert hub._is_reachable(server.address)
    with hub.offline_if_unreachable("org/teacher"):
        assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert server.count == 1


def test_a_folder_needs_no_request(tmp_path, silent, server):
    with hub.offline_if_unreachable(str(tmp_path)):
        pass
    assert server.count == 0


def test_a_prepared_dataset_is_read_after_one_request(tmp_path, silent, server):
    rows = datasets.Dataset.from_list(reviews(8))
    folder = tmp_path / "datasets" / "org___reviews" / "default" / "0.0.0" / ("b" * 40)
    folder.mkdir(parents=True)
    with datasets.arrow_writer.ArrowWriter(path=str(folder / "reviews-train.arrow"), features=rows.features) as writer:
        for row in rows:
            writer.write(row)
        count, size = writer.finalize()
    split = {"name": "train", "num_bytes": size, "num_examples": count, "dataset_name": "reviews"}
    names = {"builder_name": "parquet", "dataset_name": "reviews", "config_name": "default"}
    datasets.DatasetInfo(features=rows.features, version="0.0.0", splits={"train": split}, **names).write_to_directory(
        str(folder)
    )
    data = {"dataset": "org/reviews", "train": "train", "test": "train"}
    cached_task(tmp_path, silent, data=data).check()
    assert server.count == 1


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
    with pytest.raises(
        ConfigError, match=rf"^{field}: '{NOBODY}' is not a local folder, and the hub cannot be reached"
    ):
        task.check()
    assert monotonic() - start < 20  # the hub's client retries for 24 seconds per file


def test_a_cached_name_needs_no_hub(unreachable):
    (unreachable / "models--nobody--nothing").mkdir()
    check_path(NOBODY, "teacher.path")


def test_offline_mode_is_respected(unreachable, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("kdplug_tasks.data.hub._is_reachable", pytest.fail)
    with pytest.raises(ConfigError, match=r"it is not in the local cache of the hub\. Unset HF_HUB_OFFLINE"):
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
    with pytest.raises(ConfigError, match=r"^student\.path: cannot read the folder .*File name too long"):
        task.check()
