"""What a run writes down."""

from __future__ import annotations

import importlib
import json
import sys
import warnings

import pytest
import torch
from small_run import MATCH, make_batches, make_distiller, make_student, sgd

from kdplug.config.training import TrainingConfig
from kdplug.engine.observe import tracking as module
from kdplug.engine.observe.tracking import flat, losses, tracking
from kdplug.engine.parallel.process import process
from kdplug.errors import RunError
from kdplug.objective.report import LossReport, TermValue

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder):
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_holds_the_total_and_each_term_under_textbrewers_tags(tmp_path):
    student = make_student()
    distiller = make_distiller(
        tmp_path / "out",
        student,
        make_student(),
        matches=[MATCH],
        training={"log_dir": str(tmp_path / "log"), "logging_steps": 2},
    )
    result = distiller.train(sgd(student), make_batches(5), num_epochs=1)
    found = read(tmp_path / "log")
    assert set(found) == {
        "scalar/total_loss",
        "scalar/unweighted_kd_loss",
        "scalar/unweighted_hidden_hidden_mse_0_0",
    }
    assert [step for step, _ in found["scalar/total_loss"]] == [2, 4, 5]
    assert found["scalar/total_loss"][-1][1] == pytest.approx(result.report.total.item())


def test_log_dir_without_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "is_tensorboard_available", lambda: False)
    with (
        pytest.raises(RunError, match=r'TensorBoard needs its package: pip install "kdplug\[tensorboard\]"'),
        tracking(TrainingConfig(log_dir=str(tmp_path)), is_main=True),
    ):
        pass


@pytest.mark.parametrize(("folder", "is_main"), [(None, True), ("log", False)])
def test_no_file_is_written_without_log_dir_or_outside_the_main_process(tmp_path, folder, is_main):
    with tracking(TrainingConfig(log_dir=folder and str(tmp_path / folder)), is_main=is_main) as tracks:
        tracks.write({"total_loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())


def test_losses_are_numbers_before_weighting():
    report = LossReport(torch.tensor(3.0, requires_grad=True), {"pkd": TermValue(torch.tensor(4.0), 2, 1.5)})
    with process("cpu", "fp32") as accelerator:
        assert losses(accelerator, report) == {"total_loss": 3.0, "unweighted_pkd": 2.0}


WANDB = """
calls = []

class Config:
    def update(self, values, allow_val_change):
        calls.append(("config", values))

class Run:
    def log(self, values, step):
        calls.append(("log", values, step))
    def finish(self):
        calls.append(("finish",))

config = Config()

def init(**settings):
    calls.append(("init", settings))
    return Run()
"""

MLFLOW = """
from types import SimpleNamespace
calls = []
utils = SimpleNamespace(validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100))

def search_experiments(filter_string):
    return []

def create_experiment(name, artifact_location, tags):
    calls.append(("init", name))
    return "7"

def start_run(experiment_id, run_name, **more):
    calls.append(("run", experiment_id, run_name))

def log_params(values):
    calls.append(("config", values))

def log_metrics(values, step):
    calls.append(("log", values, step))

def end_run():
    calls.append(("finish",))
"""


@pytest.fixture
def running():
    with process("cpu", "fp32"):
        yield


@pytest.fixture
def calls(fake_site, monkeypatch):
    """What stand-ins for the two packages were called with, by package."""
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "MLFLOW_TAGS", "MLFLOW_NESTED_RUN"):
        monkeypatch.delenv(name, raising=False)
    found = {}
    for name, source in (("wandb", WANDB), ("mlflow", MLFLOW)):
        (fake_site.folder / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        found[name] = importlib.import_module(name).calls
    yield found
    for name in found:
        sys.modules.pop(name, None)


def test_every_tracker_gets_the_losses_of_each_logged_step(tmp_path, calls):
    student = make_student()
    training = {"trackers": ["wandb", "mlflow"], "logging_steps": 2}
    make_distiller(tmp_path / "out", student, training=training).train(sgd(student), make_batches(5), num_epochs=1)
    journal = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    for name in ("wandb", "mlflow"):
        logged = [{"step": step, **values} for kind, values, step in (c for c in calls[name] if c[0] == "log")]
        assert logged == journal
        assert calls[name][-1] == ("finish",)


def test_the_project_is_kdplug_and_the_run_is_called_after_its_folder(calls, monkeypatch, running):
    config = TrainingConfig(trackers=["wandb", "mlflow"])
    with tracking(config, is_main=True, name="mine"):
        assert calls["wandb"][0] == ("init", {"project": "kdplug", "name": "mine"})
        assert calls["mlflow"][:2] == [("init", "kdplug"), ("run", "7", "mine")]
    monkeypatch.setenv("WANDB_PROJECT", "thesis")
    with tracking(config, is_main=True):
        assert ("init", {"project": "thesis", "name": None}) in calls["wandb"]


def test_the_configs_of_the_run_are_stored_on_one_level(tmp_path, calls):
    student = make_student()
    training = {"trackers": ["wandb", "mlflow"], "gradient_accumulation_steps": 2}
    make_distiller(tmp_path, student, training=training).train(sgd(student), make_batches(4), num_epochs=1)
    for name in ("wandb", "mlflow"):
        (stored,) = (call[1] for call in calls[name] if call[0] == "config")
        assert stored["training.gradient_accumulation_steps"] == 2
        assert stored["total_steps"] == 2
        assert stored["distillation.temperature"] == 4.0


def test_tensorboard_stores_the_configs_too(tmp_path, running):
    with tracking(TrainingConfig(log_dir=str(tmp_path)), is_main=True, about={"training": {"seed": None, "lr": 0.5}}):
        pass
    (stored,) = tmp_path.glob("*/hparams.yml")
    assert stored.read_text() == "training.lr: 0.5\ntraining.seed: 'null'\n"


@pytest.mark.parametrize(("tracker", "called"), [("wandb", "Weights & Biases"), ("mlflow", "MLflow")])
def test_a_tracker_that_is_not_installed_says_what_to_install(monkeypatch, tracker, called):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    says = rf'tracking with {called} needs its package: pip install "kdplug\[{tracker}\]"'
    with pytest.raises(RunError, match=says), tracking(TrainingConfig(trackers=[tracker]), is_main=True):
        pass


def test_other_processes_start_no_tracker(calls):
    with tracking(TrainingConfig(trackers=["wandb", "mlflow"]), is_main=False) as tracks:
        tracks.write({"total_loss": 1.0}, 1)
    assert calls == {"wandb": [], "mlflow": []}


def test_a_tracker_is_finished_when_the_run_fails(calls, running):
    with pytest.raises(ZeroDivisionError), tracking(TrainingConfig(trackers=["wandb"]), is_main=True):
        raise ZeroDivisionError
    assert calls["wandb"][-1] == ("finish",)


def test_nested_configs_become_one_level_of_plain_values():
    nested = {"a": {"b": {"c": 1}, "": {"d": True}}, "e": [1, {"f": None}], "g": None, "h": {}}
    assert flat(nested) == {"a.b.c": 1, "a.d": True, "e": '[1, {"f": null}]', "g": "null", "h": "{}"}
