"""Checkpoints hold no frozen weights that are as at the start of the run, and a run resumed from them ends in the same bits."""

from __future__ import annotations

import shutil

import pytest
import torch
from killer import Killed, Killer
from safetensors.torch import load_file, load_model, save_file
from small_run import make_distiller, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdplug
from kdplug.engine.checkpoint.archive import CHECKSUMS, write_checksums
from kdplug.engine.checkpoint.weights import (
    STUDENT,
    TRAINABLE,
    frozen_weights,
    read_weights,
    save_weights,
    student_file,
)
from kdplug.engine.evaluation import Evaluation
from kdplug.errors import RunError

STEPS = 6


class Student(nn.Module):
    """Frozen layers, two of which are tied and one of which has running statistics, below a trained head."""

    def __init__(self, seed=1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner, self.middle, self.again = (nn.Linear(4, 4) for _ in range(3))
            self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.again.weight = self.middle.weight
        self.double()
        for part in (self.inner, self.middle, self.again, self.norm):
            part.requires_grad_(False)

    def forward(self, x):
        return self.head(self.again(torch.tanh(self.middle(self.norm(torch.tanh(self.inner(x)))))))


class Changes:
    """An observer that calls ``function`` on the student in one step, before the checkpoint of that step."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def run_start(self, run):
        pass

    def step_end(self, run, step, report):
        if step == self.step:
            self.function(run.model)

    def run_end(self, run, error):
        pass


def run(folder, *, student=None, killed_at=None, observers=(), resume="auto", **train):
    """Train 6 steps with a checkpoint after each, or until the kill; the student."""
    torch.manual_seed(0)
    student = student or Student()
    observers = [*observers, *([] if killed_at is None else [Killer(killed_at)])]
    distiller = make_distiller(
        folder, student, training={"ckpt_steps": 1, "seed": 7, "keep_last": None}, options={"observers": observers}
    )
    data = torch.randn(24, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    loader = DataLoader(TensorDataset(data), batch_size=4, shuffle=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.02)
    distiller.train(optimizer, loader, num_steps=STEPS, resume=resume, **train)
    return student


def kill(folder, step, **options):
    with pytest.raises(Killed):
        run(folder, killed_at=step, **options)


def unfreeze(student):
    student.inner.requires_grad_()
    student.head.requires_grad_(False)


def freeze(student):
    student.inner.requires_grad_(False)
    student.head.requires_grad_()


def edit(student):
    """A change in memory that leaves no trace in the tensor's version."""
    student.middle.weight.data.numpy()[0, 0] += 1.0


def stored(folder, step):
    return set(load_file(folder / f"step-{step}" / TRAINABLE))


CHANGES = {
    "nothing": [],
    "unfrozen": [Changes(2, unfreeze)],
    "unfrozen, then frozen": [Changes(2, unfreeze), Changes(4, freeze)],
    "edited": [Changes(2, edit)],
}
ALWAYS = {"head.weight", "head.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_a_checkpoint_holds_what_is_trained_and_the_buffers(tmp_path):
    run(tmp_path)
    assert student_file(tmp_path / "step-6").name == TRAINABLE
    assert not (tmp_path / "step-6" / STUDENT).exists()
    assert stored(tmp_path, 6) == ALWAYS
    left_out = {"again.bias", "again.weight", "inner.bias", "inner.weight", "middle.bias", "norm.bias", "norm.weight"}
    assert read_weights(Student(), tmp_path / "step-6" / TRAINABLE, "student").keys() == left_out


@pytest.mark.parametrize("changes", CHANGES)
def test_a_killed_run_ends_in_the_same_bits(tmp_path, changes):
    whole = weights(run(tmp_path / "whole", observers=CHANGES[changes]))
    for killed_at in (2, 3, 5):
        kill(tmp_path / f"{killed_at}", killed_at, observers=CHANGES[changes])
        resumed = run(tmp_path / f"{killed_at}", observers=CHANGES[changes])
        assert torch.equal(weights(resumed), whole)


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(tmp_path):
    changes = CHANGES["unfrozen, then frozen"]
    whole = weights(run(tmp_path / "whole", observers=changes))
    for killed_at in (2, 3, 5, 6):
        kill(tmp_path / "run", killed_at, observers=changes)
    assert torch.equal(weights(run(tmp_path / "run", observers=changes)), whole)


def test_a_frozen_weight_that_changed_is_stored_from_then_on(tmp_path):
    kill(tmp_path, 5, observers=CHANGES["unfrozen, then frozen"])
    run(tmp_path, observers=CHANGES["unfrozen, then frozen"])
    assert [stored(tmp_path, step) - ALWAYS for step in (2, 3, 6)] == [set(), *[{"inner.weight", "inner.bias"}] * 2]
    edited = tmp_path / "edited"
    run(edited, observers=CHANGES["edited"])
    assert [stored(edited, step) - ALWAYS for step in (1, 2)] == [set(), {"again.weight"}]


def test_a_change_by_the_callback_is_in_the_next_checkpoint_and_warned_of(tmp_path):
    def callback(model, step):
        if step == 2:
            unfreeze(model)

    says = r"the callback changed requires_grad of 'inner\.weight' \(and 3 more\) after the checkpoint of step 2 was written"
    with pytest.warns(UserWarning, match=says):
        whole = weights(run(tmp_path / "whole", callback=callback))
    with pytest.warns(UserWarning, match=says):
        kill(tmp_path / "run", 5, callback=callback)
    assert torch.equal(weights(run(tmp_path / "run", callback=callback)), whole)


def other_base():
    student = Student()
    with torch.no_grad():
        student.middle.bias[1] += 1e-9
        student.norm.weight[0] += 1e-9
    return student


OTHER = r"the student's frozen weight 'middle\.bias' \(and 1 more\) differs .*step-3.*student_trainable\.safetensors"


def test_other_frozen_weights_are_an_error_that_names_the_first(tmp_path):
    kill(tmp_path, 4)
    with pytest.raises(RunError, match=OTHER + r".*\. resume_changed=True .* resumes with the weights of this student"):
        run(tmp_path, student=other_base())


def test_other_frozen_weights_that_are_meant_are_warned_of_and_those_of_the_resumed_run(tmp_path):
    kill(tmp_path, 4)
    with pytest.warns(UserWarning, match="resumes with weights that differ from those it started with: " + OTHER):
        resumed = run(tmp_path, student=other_base(), resume_changed=True)
    student = other_base()
    kdplug.load_student(student, tmp_path / "step-6")
    assert torch.equal(weights(student), weights(resumed))
    assert stored(tmp_path, 6) == ALWAYS


def test_another_student_is_an_error(tmp_path):
    kill(tmp_path, 4)
    file = tmp_path / "step-3" / TRAINABLE
    with pytest.raises(RunError, match=r"student_trainable\.safetensors does not match the student: the file names a"):
        kdplug.load_student(nn.Linear(2, 2), file)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_checkpoint_is_loaded_into_a_student_of_the_same_base(tmp_path, what):
    trained, student = run(tmp_path), Student()
    folder = tmp_path / "step-6"
    kdplug.load_student(student, folder / TRAINABLE if what == "file" else folder)
    assert torch.equal(weights(student), weights(trained))
    assert student.again.weight is student.middle.weight
    other = other_base()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(RunError, match=r"frozen weight 'middle\.bias'"):
        kdplug.load_student(other, folder)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_part_is_not_mistaken_for_a_whole_student(tmp_path):
    run(tmp_path)
    with pytest.raises(RuntimeError, match=r"Missing key.*inner\.weight"):
        load_model(Student(), tmp_path / "step-6" / TRAINABLE)


def test_a_student_of_which_nothing_is_left_out_is_in_an_ordinary_file(tmp_path):
    def edit_all(model):
        for parameter in model.parameters():
            parameter.data += 1.0

    trained, student = run(tmp_path, observers=[Changes(1, edit_all)]), Student(seed=2)
    assert not (tmp_path / "step-6" / TRAINABLE).exists()
    load_model(student, tmp_path / "step-6" / STUDENT)
    assert torch.equal(weights(student), weights(trained))


def test_a_checkpoint_with_all_weights_of_an_earlier_version_is_resumed(tmp_path):
    whole = weights(run(tmp_path / "whole"))
    kill(tmp_path / "run", 4)
    for step in (1, 2, 3):
        student = Student()
        folder = tmp_path / "run" / f"step-{step}"
        kdplug.load_student(student, folder)
        (folder / TRAINABLE).unlink()
        save_weights(student, folder / STUDENT)
        write_checksums(folder, [file for file in folder.iterdir() if file.name != CHECKSUMS])
    assert torch.equal(weights(run(tmp_path / "run", student=Student(seed=2))), whole)
    assert (tmp_path / "run" / "step-6" / STUDENT).is_file()


def test_tied_weights_that_are_no_longer_tied_are_an_error(tmp_path):
    """The one that is stored would overwrite the one that is left out."""

    def untie(model):
        model.middle.weight = nn.Parameter(model.middle.weight.detach() + 1.0)

    run(tmp_path, observers=[Changes(3, untie)])
    assert stored(tmp_path, 6) - ALWAYS == {"middle.weight"}
    with pytest.raises(RunError, match=r"frozen weight 'again\.weight'"):
        kdplug.load_student(Student(), tmp_path / "step-6")


def test_a_student_with_weights_that_have_no_shape_at_the_start_ends_in_the_same_bits(tmp_path):
    def lazy():
        student = Student()
        student.head = nn.LazyLinear(3, dtype=torch.float64)
        return student

    whole = weights(run(tmp_path / "whole", student=lazy()))
    assert stored(tmp_path / "whole", 6) == ALWAYS
    kill(tmp_path / "run", 4, student=lazy())
    assert torch.equal(weights(run(tmp_path / "run", student=lazy())), whole)


def test_a_compiled_student_has_the_names_of_the_one_inside(tmp_path):
    student = Student()
    assert frozen_weights(torch.compile(student, backend="eager")) == frozen_weights(student)
    assert frozen_weights(student).keys() == {
        *("again.bias", "again.weight", "inner.bias", "inner.weight", "middle.bias", "norm.bias", "norm.weight")
    }


@pytest.mark.parametrize("digests", ["", "{", "[" * 100_000, '{"inner.weight": 1}', "[]"])
def test_digests_that_are_no_mapping_are_an_error(tmp_path, digests):
    save_file(dict(nn.Linear(2, 2).state_dict()), tmp_path / TRAINABLE, {"frozen": digests})
    with pytest.raises(RunError, match=r"cannot read .*student_trainable\.safetensors"):
        kdplug.load_student(nn.Linear(2, 2), tmp_path)


def test_the_best_checkpoint_is_resumed_and_its_damage_found(tmp_path, caplog):
    def looks():
        numbers = iter([3.0, 9.0, 1.0, 2.0, 4.0, 3.0, 2.0])
        return Evaluation(function=lambda model: {"accuracy": next(numbers)}, best="accuracy", every=1)

    kill(tmp_path / "run", 4, evaluation=looks())
    shutil.copytree(tmp_path / "run", tmp_path / "damaged")
    result = weights(run(tmp_path / "run", evaluation=looks()))
    assert torch.equal(result, weights(run(tmp_path / "whole", evaluation=looks())))
    assert not caplog.messages
    (tmp_path / "damaged" / "step-2" / TRAINABLE).unlink()
    run(tmp_path / "damaged", evaluation=looks())
    (message,) = caplog.messages
    assert "step-2, is damaged (student_trainable.safetensors is missing)" in message


def test_a_finished_student_is_whole(tmp_path):
    student, other = Student(), Student(seed=2)
    save_weights(student, tmp_path / STUDENT)
    assert read_weights(other, tmp_path / STUDENT, "student") == {}
    assert torch.equal(weights(other), weights(student))


def adapted():
    """A BERT of random weights with LoRA adapters, of which 1 % is trained."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.BertForSequenceClassification(config)
        lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_dropout=0.1, target_modules=["query", "value"])
        return peft.get_peft_model(model, lora)


def distil_adapted(folder, killed_at=None):
    student = adapted()
    teacher = adapted()
    config = kdplug.TrainingConfig(output_dir=str(folder), device="cpu", ckpt_steps=1, keep_last=None, seed=7)
    observers = [] if killed_at is None else [Killer(killed_at)]
    distiller = kdplug.GeneralDistiller(
        config, kdplug.DistillationConfig(), teacher, student, observers=observers, show_progress=False
    )
    tokens = torch.randint(500, (12, 8), generator=torch.Generator().manual_seed(3))
    loader = DataLoader([{"input_ids": row} for row in tokens], batch_size=4, shuffle=True)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    distiller.train(torch.optim.AdamW(trained, lr=0.01), loader, num_steps=STEPS, resume="auto")
    return student


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads a deprecated attribute of transformers
def test_checkpoints_of_a_student_with_adapters_hold_the_adapters(tmp_path):
    whole = distil_adapted(tmp_path / "whole")
    with pytest.raises(Killed):
        distil_adapted(tmp_path / "run", killed_at=4)
    assert torch.equal(weights(distil_adapted(tmp_path / "run")), weights(whole))
    file = tmp_path / "run" / "step-6" / TRAINABLE
    assert all("lora" in name or "classifier" in name for name in load_file(file))
    assert file.stat().st_size < 0.1 * sum(one.numel() * one.element_size() for one in whole.parameters())
    student = adapted()
    kdplug.load_student(student, file.parent)
    assert torch.equal(weights(student), weights(whole))
