"""What a user of ``GeneralDistiller`` sees."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from safetensors.torch import load_file
from small_run import MATCH, PROJECTED, make_batches, make_distiller, make_student, make_teacher, sgd, weights

from kdplug.distillers.general import GeneralDistiller
from kdplug.errors import RunError


class Notes:
    """An observer that keeps what it is told."""

    def __init__(self):
        self.started, self.steps, self.ended = [], [], []

    def run_start(self, run):
        self.started.append((run.step, run.total_steps))

    def step_end(self, run, step, report):
        self.steps.append((step, run.progress, report.total.item()))

    def run_end(self, run, error):
        self.ended.append((run.step, error))


def test_the_arguments_are_in_textbrewers_order():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import textbrewer
    theirs, ours = textbrewer.GeneralDistiller.train, GeneralDistiller.train
    names = [
        [name for name, kind in inspect.signature(train).parameters.items() if kind.kind is kind.POSITIONAL_OR_KEYWORD]
        for train in (theirs, ours)
    ]
    assert names[1] == names[0]


def test_a_student_comes_nearer_to_its_teacher(tmp_path):
    student, teacher, (batch,) = make_student(), make_teacher(), make_batches(1, size=16)

    def distance():
        return (student(batch)["logits"] - teacher(batch)["logits"]).square().mean().item()

    before = distance()
    make_distiller(tmp_path, student, teacher, kd_loss_type="mse", temperature=1).train(sgd(student), [batch], 50)
    assert distance() < 0.5 * before


def test_the_result_names_steps_folder_and_checkpoints(tmp_path):
    student = make_student()
    result = make_distiller(tmp_path, student).train(sgd(student), make_batches(3), num_epochs=2)
    assert (result.step, result.output_dir) == (6, tmp_path)
    assert [path.parent.name for path in result.checkpoints] == ["step-3", "step-6"]
    assert result.seconds > 0


def test_a_checkpoint_holds_the_student_and_nothing_else(tmp_path):
    student = make_student()
    result = make_distiller(tmp_path, student, matches=[PROJECTED]).train(sgd(student), make_batches(3), num_epochs=1)
    saved = load_file(result.checkpoints[-1])
    assert saved.keys() == student.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in student.state_dict().items())


def test_the_callback_gets_the_student_itself_at_each_checkpoint(tmp_path):
    student, seen = make_student(), []

    def callback(model, step):
        seen.append((model is student, step, model.training))
        model.eval()

    distiller = make_distiller(tmp_path, student, training={"ckpt_frequency": 2})
    distiller.train(sgd(student), make_batches(4), num_epochs=1, callback=callback)
    assert seen == [(True, 2, True), (True, 4, True)]


def test_a_callback_that_evaluates_does_not_change_what_is_trained(tmp_path):
    ends = []
    for callback in (None, lambda model, step: model.eval()):
        torch.manual_seed(0)
        student = make_student(dropout=0.5)
        distiller = make_distiller(tmp_path, student, training={"ckpt_frequency": 4})
        distiller.train(sgd(student), make_batches(4), num_epochs=1, callback=callback, overwrite=True)
        ends.append(weights(student))
    assert torch.equal(*ends)


def test_the_postprocessor_changes_what_the_models_see(tmp_path):
    ends = []
    for batches, postprocessor in (
        (make_batches(3), lambda batch: 2 * batch),
        ([2 * b for b in make_batches(3)], None),
    ):
        student = make_student()
        make_distiller(tmp_path, student).train(
            sgd(student), batches, 1, batch_postprocessor=postprocessor, overwrite=True
        )
        ends.append(weights(student))
    assert torch.equal(*ends)


def test_further_arguments_go_to_both_models(tmp_path):
    student, teacher, seen = make_student(), make_teacher(), []
    for model in (student, teacher):
        model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    make_distiller(tmp_path, student, teacher).train(sgd(student), make_batches(1), num_epochs=1, scale=3.0)
    assert seen == [{"scale": 3.0}, {"scale": 3.0}]


def test_each_adaptor_sees_its_own_side(tmp_path):
    student, seen = make_student(), []

    def adaptor(side):
        return lambda batch, outputs: seen.append((side, len(batch), outputs["hidden"][0].shape[-1])) or outputs

    batch = {"teacher": (make_batches(1, size=6)[0][:4],), "student": make_batches(1, size=4)[0]}
    distiller = make_distiller(tmp_path, student, adaptors=(adaptor("teacher"), adaptor("student")))
    distiller.train(sgd(student), [batch], num_epochs=1)
    assert seen == [("teacher", 1, 5), ("student", 4, 3)]


def test_a_cache_in_the_batch_replaces_the_teacher(tmp_path):
    student, batch = make_student(), make_batches(1)[0]
    teacher = make_teacher()
    cache = {name: value for name, value in teacher.eval()(batch).items() if name == "logits"}
    cache["logits"] = cache["logits"].detach()
    ends = [student, make_student()]
    for model, data in zip(ends, (batch, {"teacher": None, "student": batch, "teacher_cache": cache}), strict=True):
        make_distiller(tmp_path, model).train(sgd(model), [data], num_epochs=1, overwrite=True)
    assert torch.equal(*map(weights, ends))


@pytest.mark.parametrize("how", ["tuple", "list", "mapping", "tensor"])
def test_every_form_of_a_batch_trains_the_same(tmp_path, how):
    form = {"tuple": lambda x: (x,), "list": lambda x: [x], "mapping": lambda x: {"x": x}, "tensor": lambda x: x}[how]
    student, expected = make_student(), make_student()
    make_distiller(tmp_path, expected).train(sgd(expected), make_batches(2), num_epochs=1, overwrite=True)
    make_distiller(tmp_path, student).train(
        sgd(student), [form(x) for x in make_batches(2)], num_epochs=1, overwrite=True
    )
    assert torch.equal(weights(student), weights(expected))


def test_observers_receive_the_run_and_each_step(tmp_path):
    student, notes = make_student(), Notes()
    distiller = make_distiller(tmp_path, student, options={"observers": [notes]})
    distiller.train(sgd(student), make_batches(4), num_epochs=1)
    assert notes.started == [(0, 4)]
    assert [(step, progress) for step, progress, _ in notes.steps] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert notes.ended == [(4, None)]


def test_observers_receive_what_ended_a_run(tmp_path):
    student, notes = make_student(), Notes()

    def interrupted():
        yield make_batches(1)[0]
        raise KeyboardInterrupt

    distiller = make_distiller(tmp_path, student, options={"observers": [notes]})
    with pytest.raises(KeyboardInterrupt):
        distiller.train(sgd(student), interrupted(), num_steps=5)
    ((step, error),) = notes.ended
    assert step == 1
    assert isinstance(error, KeyboardInterrupt)


@pytest.mark.parametrize("strict", [False, True])
def test_an_observer_that_raises_ends_the_run_only_if_strict(tmp_path, strict):
    class Broken(Notes):
        def step_end(self, run, step, report):
            raise OSError("disk full")

    student = make_student()
    distiller = make_distiller(tmp_path, student, options={"observers": [Broken()], "strict": strict})
    expected = pytest.raises(OSError, match="disk full") if strict else pytest.warns(RuntimeWarning, match="disk full")
    with expected:
        distiller.train(sgd(student), make_batches(2), num_epochs=1)


def test_the_life_cycle_hooks_of_plugins_are_called(tmp_path):
    from kdplug import hookimpl
    from kdplug.host.active import active

    steps = []

    class Plugin:
        @hookimpl
        def kdplug_step_end(self, step):
            steps.append(step)

    manager, student = active().manager, make_student()
    manager.register(Plugin(), name="test-plugin")
    try:
        make_distiller(tmp_path, student).train(sgd(student), make_batches(2), num_epochs=1)
    finally:
        manager.unregister(name="test-plugin")
    assert steps == [1, 2]


def test_progress_goes_to_the_error_stream_and_nothing_to_the_output(tmp_path, capsys):
    student = make_student()
    distiller = make_distiller(tmp_path, student, options={"show_progress": True})
    distiller.train(sgd(student), make_batches(2), num_epochs=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 2/2" in err


def test_one_module_cannot_be_teacher_and_student(tmp_path):
    student = make_student()
    with pytest.raises(RunError, match="teacher and student are the same module"):
        make_distiller(tmp_path, student, student).train(sgd(student), make_batches(1), num_epochs=1)


def test_an_optimizer_of_the_teacher_is_an_error(tmp_path):
    teacher = make_teacher()
    with pytest.raises(RunError, match="optimizer holds none of the student's trainable parameters"):
        make_distiller(tmp_path, make_student(), teacher).train(sgd(teacher), make_batches(1), num_epochs=1)


def test_a_trainable_parameter_on_both_sides_is_an_error(tmp_path):
    student, teacher = make_student(), make_teacher()
    teacher.extra = student.head
    with pytest.raises(RunError, match=r"share trainable parameters \('head.weight' and 1 more\)"):
        make_distiller(tmp_path, student, teacher).train(sgd(student), make_batches(1), num_epochs=1)


def test_a_frozen_parameter_on_both_sides_is_none(tmp_path):
    student, teacher = make_student(), make_teacher()
    teacher.extra = student.inner.requires_grad_(False)
    make_distiller(tmp_path, student, teacher).train(sgd(student.head), make_batches(1), num_epochs=1)


def test_nothing_is_written_by_making_a_distiller(tmp_path):
    """Weakness 2.3: TrainingConfig() made a directory."""
    make_distiller(tmp_path / "out", make_student(), matches=[MATCH])
    assert not (tmp_path / "out").exists()
