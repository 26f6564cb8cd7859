"""``model_T="self"``: the student with its adapters off is the teacher; and frozen bases that both models share."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from killer import Killed, Killer
from small_run import weights
from torch import nn
from torch.utils.data import DataLoader

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.contracts.teacher import SwitchesAdapters
from kdplug.distillers.general import GeneralDistiller
from kdplug.errors import ConfigError, RunError


class Adapted(nn.Module):
    """A frozen model with a low-rank adapter, as peft makes one, in a few lines."""

    def __init__(self, dropout=0.2, frozen=True):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.inner = nn.Linear(4, 6).double()
            self.head = nn.Linear(6, 3).double()
            self.down = nn.Linear(6, 2, bias=False).double()
            self.up = nn.Linear(2, 6, bias=False).double()
        for part in (self.inner, self.head):
            part.requires_grad_(not frozen)
        self.dropout = nn.Dropout(dropout)
        self.is_on = True

    @contextmanager
    def disable_adapter(self):
        self.is_on = False
        try:
            yield
        finally:
            self.is_on = True

    def forward(self, x):
        hidden = torch.tanh(self.inner(x))
        if self.is_on:
            hidden = hidden + self.up(self.down(self.dropout(hidden)))
        logits = self.head(hidden)
        return {"logits": logits, "hidden": [hidden], "losses": logits.square().mean(-1)}


class Base(nn.Module):
    """The model without the adapter."""

    def __init__(self, adapted):
        super().__init__()
        self.inner, self.head = copy.deepcopy(adapted.inner), copy.deepcopy(adapted.head)

    def forward(self, x):
        hidden = torch.tanh(self.inner(x))
        return {"logits": self.head(hidden), "hidden": [hidden]}


HIDDEN = {"loss": "hidden_mse", "layer_S": 0, "layer_T": 0, "feature": "hidden"}
BY_PATH = {"loss": "hidden_mse", "layer_S": "up", "layer_T": "head", "proj": ["linear", 6, 3]}


def distil(folder, student, teacher, *, terms=({"loss": "mse"}, HIDDEN), training=None, observers=(), **options):
    torch.manual_seed(0)
    config = DistillationConfig(terms=list(terms), **{"hard_label_weight": 1.0, **options.pop("keys", {})})
    training = TrainingConfig(output_dir=str(folder), device="cpu", ckpt_steps=2, seed=5, **(training or {}))
    made = GeneralDistiller(training, config, teacher, student, show_progress=False, observers=observers)
    made.objective.double()
    rows = torch.randn(24, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    trained = [one for one in student.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    made.train(optimizer, DataLoader(rows, batch_size=4, shuffle=True), **{"num_steps": 8, **options})
    return weights(student)


@pytest.mark.parametrize("terms", [({"loss": "mse"}, HIDDEN), ({"loss": "mse"}, BY_PATH)])
def test_the_student_without_its_adapter_is_the_teacher(tmp_path, terms):
    student = Adapted()
    assert isinstance(student, SwitchesAdapters)
    found = distil(tmp_path / "self", student, "self", terms=terms)
    expected = distil(tmp_path / "model", Adapted(), Base(Adapted()), terms=terms)
    assert torch.equal(found, expected)
    assert not torch.equal(student.down.weight, Adapted().down.weight)
    assert all(module.training for module in student.modules())


def test_it_is_cached_like_a_model_and_resumed_to_equal_bits(tmp_path):
    keys, training = {"is_caching_logits": True}, {"teacher_cache": str(tmp_path / "cache")}
    live = distil(tmp_path / "live", Adapted(), "self")
    assert torch.equal(distil(tmp_path / "one", Adapted(), "self", keys=keys, training=training), live)
    trained = Adapted()
    with torch.no_grad():
        trained.up.weight.zero_()  # what is trained is no part of the teacher
    distil(tmp_path / "two", trained, "self", keys=keys, training=training)
    with torch.no_grad():
        trained.head.weight.add_(1)
    with pytest.raises(RunError, match=r"the teacher's weights"):
        distil(tmp_path / "three", trained, "self", keys=keys, training=training)
    with pytest.raises(Killed):
        distil(tmp_path / "killed", Adapted(), "self", observers=[Killer(5)])
    assert torch.equal(distil(tmp_path / "killed", Adapted(), "self", resume="auto"), live)


def test_a_student_that_has_no_adapters_or_changes_its_base_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"model_T: is self, but the student, a Base, has no disable_adapter"):
        distil(tmp_path, Base(Adapted()), "self")
    with pytest.raises(RunError, match=r"the student's 'inner\.weight' and 3 more take part .* with the adapters off"):
        distil(tmp_path, Adapted(frozen=False), "self")
    normed = Adapted()
    normed.norm = nn.BatchNorm1d(4)
    with pytest.raises(ConfigError, match=r"model_T: is self, but training changes .* batch norm 'norm'"):
        distil(tmp_path, normed, "self")
    assert not list(tmp_path.glob("step-*"))


def test_inputs_that_require_gradient_are_no_trained_parameters(tmp_path):
    """peft does so for gradient checkpointing."""
    student = Adapted()
    student.inner.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    distil(tmp_path, student, "self")


def test_a_frozen_base_may_be_shared_with_a_model_of_its_own(tmp_path):
    student = Adapted()
    teacher = Base(student)
    teacher.inner, teacher.head = student.inner, student.head
    before = weights(student.head)
    found = distil(tmp_path / "shared", student, teacher)
    assert torch.equal(before, weights(student.head))
    assert torch.equal(found, distil(tmp_path / "apart", Adapted(), Base(Adapted())))
    student.head.requires_grad_(True)
    with pytest.raises(RunError, match="share trainable parameters"):
        distil(tmp_path / "trained", student, teacher)


def test_the_student_of_peft_is_such_a_student(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(Base(Adapted()), peft.LoraConfig(target_modules=["inner"], r=2))
    found = distil(tmp_path / "self", model.double(), "self", terms=[{"loss": "mse"}], keys={"hard_label_weight": 0})
    assert found.isfinite().all()


def test_without_a_teacher_the_terms_that_read_one_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"model_T: is missing, .*mse \(teacher_logits\), hidden_hidden_mse_0_0 \("):
        distil(tmp_path, Adapted(), None)
    own = {"loss": "hidden_mse", "layer_S": "inner", "layer_T": "head", "teacher": "student", "proj": ["linear", 6, 3]}
    with pytest.raises(ConfigError, match=r"is_caching_logits: has no effect without a teacher"):
        distil(tmp_path, Adapted(), None, terms=[own], keys={"is_caching_logits": True})
    found = distil(tmp_path / "one", Adapted(frozen=False), None, terms=[own])
    with pytest.raises(Killed):
        distil(tmp_path / "two", Adapted(frozen=False), None, terms=[own], observers=[Killer(5)])
    assert torch.equal(distil(tmp_path / "two", Adapted(frozen=False), None, terms=[own], resume="auto"), found)


def test_a_term_that_reads_the_student_bypasses_the_cache(tmp_path):
    own = {"loss": "hidden_mse", "layer_S": "inner", "layer_T": "head", "teacher": "student", "proj": ["linear", 6, 3]}
    terms = [{"loss": "mse"}, own]
    live = distil(tmp_path / "live", Adapted(frozen=False), Base(Adapted()), terms=terms)
    training = {"teacher_cache": str(tmp_path / "cache")}
    for folder in ("filled", "read"):
        found = distil(
            tmp_path / folder,
            Adapted(frozen=False),
            Base(Adapted()),
            terms=terms,
            keys={"is_caching_logits": True},
            training=training,
        )
        assert torch.equal(found, live)
