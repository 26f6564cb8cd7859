"""What a run writes down."""

from __future__ import annotations

import warnings

import pytest
import torch
from small_run import MATCH, make_batches, make_distiller, make_student, sgd

from kdplug.engine import tracking as module
from kdplug.engine.process import process
from kdplug.engine.tracking import losses, tracking
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
        pytest.raises(RunError, match=r'needs TensorBoard: pip install "kdplug\[tensorboard\]"'),
        tracking(tmp_path, is_main=True),
    ):
        pass


@pytest.mark.parametrize(("folder", "is_main"), [(None, True), ("log", False)])
def test_no_file_is_written_without_log_dir_or_outside_the_main_process(tmp_path, folder, is_main):
    with tracking(folder and tmp_path / folder, is_main=is_main) as tracks:
        tracks.write({"total_loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())


def test_losses_are_numbers_before_weighting():
    report = LossReport(torch.tensor(3.0, requires_grad=True), {"pkd": TermValue(torch.tensor(4.0), 2, 1.5)})
    with process("cpu", "fp32") as accelerator:
        assert losses(accelerator, report) == {"total_loss": 3.0, "unweighted_pkd": 2.0}
