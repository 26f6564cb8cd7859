"""Runs that would train something else than they say: none may do so in silence."""

from __future__ import annotations

import random
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from bert_run import examples
from entrance import ASKS, INTEGRATIONS, TRAINS, models
from label_run import FORMS, LABELS, train
from loop_run import lightning_trainer
from small_run import PROJECTED, Net, make_batches, make_distiller, make_student, sgd, weights
from torch import nn
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from kdplug import LossSum
from kdplug.config.distillation import DistillationConfig
from kdplug.errors import RunError
from kdplug.integrations.lightning import DistillationModule
from kdplug.integrations.transformers import DistillationTrainer
from kdplug.objective.objective import Objective

pytestmark = [  # pytorch-lightning's own, of tiny data
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


@pytest.fixture(autouse=True)
def _no_state_is_left():
    """transformers' Trainer leaves accelerate set to its own precision."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.attack("labels spread unevenly over the micro-batches of a step")
@pytest.mark.filterwarnings("ignore:2 of the student's 6 trained parameters got no gradient")  # its other head
@pytest.mark.parametrize("form", FORMS)
def test_no_division_of_a_batch_changes_the_student(tmp_path, attempts, form):
    draw = random.Random(form)
    whole, _ = train(tmp_path / "whole", [list(range(len(LABELS)))], form, accumulation=1)
    for attempt in range(5):
        order = draw.sample(range(len(LABELS)), len(LABELS))
        edges = [0, *sorted(draw.sample(range(1, len(LABELS)), draw.randint(1, 5))), len(LABELS)]
        cut = [order[start:end] for start, end in pairwise(edges)]
        student, _ = train(tmp_path / str(attempt), cut, form, accumulation=len(cut))
        attempts.record(torch.allclose(weights(student), weights(whole), rtol=0, atol=1e-10))
    assert attempts.held == attempts.tried


def as_parameter(student, theirs):
    student.weight = nn.Parameter(theirs.weight.data)


def as_assigned_state(student, theirs):
    student.load_state_dict(theirs.state_dict(), assign=True)


def as_a_view(student, theirs):
    whole = torch.cat([theirs.weight.data, torch.ones_like(theirs.weight)])
    theirs.weight.data, student.weight.data = whole[: len(theirs.weight)], whole[1 : len(theirs.weight) + 1]


def as_numpy(student, theirs):
    student.weight = nn.Parameter(torch.from_numpy(theirs.weight.detach().numpy()))


def as_a_buffer(student, theirs):
    theirs.register_buffer("copy", student.weight.data)


def as_the_same_parameter(student, theirs):
    student.weight = theirs.weight


SHARING = [as_parameter, as_assigned_state, as_a_view, as_numpy, as_a_buffer, as_the_same_parameter]


@pytest.mark.attack("a student that is trained in the teacher's memory")
@pytest.mark.parametrize("share", SHARING)
@pytest.mark.parametrize("entrance", TRAINS)
def test_no_student_is_trained_in_the_teachers_memory(tmp_path, entrance, share):
    student, teacher, ours, theirs = models(entrance)
    share(ours, theirs)
    with pytest.raises(RunError, match=r"share trainable parameters \('.*would change the teacher's"):
        TRAINS[entrance](tmp_path, student, teacher)


def counts_passes(model, *_):
    model.seen.add_(1)


@pytest.mark.attack("a student whose forward pass writes to a buffer of the teacher")
@pytest.mark.parametrize("entrance", [name for name in TRAINS if name != "cached"])
def test_no_student_writes_to_the_teachers_buffers(tmp_path, entrance):
    student, teacher, _, _ = models(entrance)
    teacher.register_buffer("seen", torch.zeros(2))
    student.register_buffer("seen", teacher.seen)
    student.register_forward_hook(counts_passes)
    with pytest.raises(RunError, match=r"teacher.*'s buffer 'seen' changed between two forward passes"):
        TRAINS[entrance](tmp_path, student, teacher)


@pytest.mark.attack("a student whose forward pass writes to memory that the teacher works with")
@pytest.mark.parametrize("entrance", [name for name in TRAINS if name != "cached"])
def test_no_student_writes_to_memory_that_is_not_part_of_the_teacher(tmp_path, entrance):
    student, teacher, _, _ = models(entrance)
    teacher.register_buffer("seen", torch.zeros(2), persistent=False)
    student.register_buffer("seen", teacher.seen, persistent=False)
    student.register_forward_hook(counts_passes)
    with pytest.raises(RunError, match=r"teacher.*'s non-persistent buffer 'seen' changed between two forward passes"):
        TRAINS[entrance](tmp_path, student, teacher)


def scales_weight(layer, *_):
    layer.weight.data.mul_(1.01)


@pytest.mark.attack("a teacher whose forward pass writes to its parameters")
@pytest.mark.parametrize("entrance", ASKS)
def test_no_teacher_trains_itself(tmp_path, entrance):
    student, teacher, _, layer = models(entrance)
    layer.register_forward_hook(scales_weight)
    with pytest.raises(RunError, match=r"changed its parameter '\w+\.weight', so its outputs depend"):
        ASKS[entrance](tmp_path, student, teacher)


def with_additive_masks(batch, outputs):
    """0 = keep, in a batch without padding."""
    return {**outputs, "logits_mask": torch.zeros(len(outputs["logits"])), "inputs_mask": torch.zeros(4, 1)}


@pytest.mark.attack("an additive mask in batches without padding")
@pytest.mark.parametrize("accumulation", [1, 3])
def test_no_run_counts_nothing_in_silence(tmp_path, accumulation):
    student = make_student()
    distiller = make_distiller(
        tmp_path, student, adaptors=(None, with_additive_masks), training={"gradient_accumulation_steps": accumulation}
    )
    with pytest.warns(UserWarning, match=r"^kd_loss has counted no items .* The student's logits_mask is 0 everywhere"):
        distiller.train(sgd(student), make_batches(6), num_epochs=1)


def labelled_at_first(batches):
    """An adaptor whose hard label loss counts items in the first ``batches`` batches only."""
    seen = 0

    def adaptor(batch, outputs):
        nonlocal seen
        seen += torch.is_grad_enabled()
        count = torch.tensor(4.0 if seen <= batches else 0.0)
        return {**outputs, "losses": LossSum(outputs["logits"].square().mean() * count, count)}

    return adaptor


@pytest.mark.attack("a term that counts items at first and never again")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_term_that_stops_counting_is_warned_of_once(tmp_path, accumulation):
    student = make_student()
    distiller = make_distiller(
        tmp_path,
        student,
        adaptors=(None, labelled_at_first(2)),
        hard_label_weight=1,
        training={"gradient_accumulation_steps": accumulation},
    )
    with pytest.warns(UserWarning, match=r"^hard_label_loss had no items in its last \d+ batches") as caught:
        distiller.train(sgd(student), make_batches(4), num_steps=300)
    assert len(caught) == 1


@pytest.mark.attack("a term that counts items now and then")
def test_a_term_that_counts_items_now_and_then_is_no_warning(tmp_path, recwarn):
    student, seen = make_student(), iter(range(1000))

    def adaptor(batch, outputs):
        count = torch.tensor(float(next(seen) % 30 == 0))
        return {**outputs, "losses": LossSum(outputs["logits"].square().mean() * count, count)}

    distiller = make_distiller(tmp_path, student, adaptors=(None, adaptor), hard_label_weight=1)
    distiller.train(sgd(student), make_batches(4), num_steps=200)
    assert not [one for one in recwarn if "had no items" in str(one.message)]


@pytest.mark.attack("a student whose adaptor detaches what a term reads")
def test_no_run_trains_a_projection_alone_in_silence(tmp_path):
    student = make_student()
    distiller = make_distiller(
        tmp_path,
        student,
        matches=[PROJECTED],
        adaptors=(None, lambda batch, outputs: {"hidden": [one.detach() for one in outputs["hidden"]]}),
        kd_loss_weight=0,
    )
    with (
        pytest.warns(UserWarning, match=r"trained parameters got no gradient in the first 2 step"),
        pytest.warns(UserWarning, match=r"does not train the student: the student tensors that it reads have no grad"),
    ):
        distiller.train(sgd(student), make_batches(2), num_epochs=1)


@pytest.mark.attack("an additive mask in batches without padding")
def test_no_lightning_module_counts_nothing_in_silence(tmp_path):
    student, teacher, _, _ = models("lightning")

    def additive(batch, outputs):
        return {"logits": outputs.logits, "logits_mask": torch.zeros(outputs.logits.shape[:-1])}

    module = DistillationModule(
        student, teacher, DistillationConfig(), lambda groups: torch.optim.SGD(groups, lr=0.1), adaptor_S=additive
    )
    with pytest.warns(UserWarning, match=r"^kd_loss has counted no items .* The student's logits_mask is 0 everywhere"):
        lightning_trainer(tmp_path, max_epochs=1).fit(module, DataLoader(examples(16), batch_size=4))


def starts_training(model, *_):
    model.train()


def in_train_mode(teacher, layer):
    teacher.register_forward_pre_hook(starts_training)


def one_layer_in_train_mode(teacher, layer):
    layer.register_forward_hook(starts_training)


def in_train_mode_from_the_second_pass_on(teacher, layer):
    def hook(model, *_):
        if getattr(model, "is_asked_again", False):
            model.train()
        model.is_asked_again = True

    teacher.register_forward_pre_hook(hook)


def deaf_to_eval(teacher, layer):
    layer.train = lambda mode=True: layer
    layer.training = True


RESTLESS = [in_train_mode, one_layer_in_train_mode, in_train_mode_from_the_second_pass_on, deaf_to_eval]


@pytest.mark.attack("a teacher in train mode")
@pytest.mark.parametrize("make", RESTLESS)
@pytest.mark.parametrize("entrance", ASKS)
def test_no_teacher_is_asked_in_train_mode(tmp_path, entrance, make):
    student, teacher, _, layer = models(entrance)
    make(teacher, layer)
    if entrance == "own_loop" and make is deaf_to_eval:
        with pytest.warns(UserWarning, match=r"the teacher is in train mode.*Call teacher.eval\(\) first"):
            ASKS[entrance](tmp_path, student, teacher)
        return
    with pytest.raises(RunError, match=r"after a forward pass of the teacher.* in train mode"):
        ASKS[entrance](tmp_path, student, teacher)


@pytest.mark.attack("a teacher whose forward pass writes to its buffers")
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("entrance", ASKS)
def test_no_teacher_changes_what_it_says(tmp_path, entrance, persistent):
    student, teacher, _, layer = models(entrance)
    layer.register_buffer("seen", torch.zeros(2), persistent=persistent)
    layer.register_forward_hook(counts_passes)
    expected = pytest.raises(RunError, match=r"changed its buffer '\w+.seen', so its") if persistent else nullcontext()
    with expected:
        ASKS[entrance](tmp_path, student, teacher)
    assert layer.seen[0] == 1 or not persistent


@pytest.mark.attack("batch norm that learns inside a teacher's forward pass")
@pytest.mark.parametrize("entrance", [name for name in ASKS if name not in INTEGRATIONS])
def test_no_batch_norm_learns_between_two_calls_of_train_and_eval(tmp_path, entrance):
    class Sly(Net):
        def __init__(self):
            super().__init__(3, seed=2)
            self.norm = nn.BatchNorm1d(4).double()

        def forward(self, x):
            self.train()
            made = super().forward(self.norm(x))
            self.eval()
            return made

    with pytest.raises(RunError, match=r"changed its buffer 'norm.running_mean', so its outputs depend"):
        ASKS[entrance](tmp_path, models(entrance)[0], Sly())


@pytest.mark.attack("labels of a causal model, each beside the logits that predict it")
@pytest.mark.parametrize("loss", [{"name": "dkd"}, {"name": "nkd"}, {"name": "wsld"}, None])
def test_the_trainer_compares_a_causal_model_with_the_label_of_the_next_token(tmp_path, loss):
    def model(seed, layers):
        torch.manual_seed(seed)
        sizes = {"vocab_size": 11, "n_embd": 8, "n_layer": layers, "n_head": 2, "n_positions": 8}
        return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()

    teacher, student = model(1, 2), model(2, 1)
    ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(6) < torch.tensor([[3], [4], [5], [6]])).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100  # a prompt
    given = [
        dict(zip(("input_ids", "attention_mask", "labels"), row, strict=True))
        for row in zip(ids, mask, labels, strict=True)
    ]
    config = DistillationConfig(
        temperature=2, kd_loss_type=loss or {"name": "kl"}, probability_shift=loss is None, hard_label_weight=0
    )
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher,
        distill_config=config,
        args=TrainingArguments(str(tmp_path), per_device_eval_batch_size=4, report_to=[], use_cpu=True),
        eval_dataset=given,
    )
    found = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        own, theirs = (one(ids, attention_mask=mask).logits for one in (student, teacher))
        counts = mask.bool()
        following = torch.cat([labels[:, 1:], torch.full((4, 1), -100)], dim=1)
        wanted = Objective(config)(
            student={"logits": own[counts], "labels": following[counts]}, teacher={"logits": theirs[counts]}
        ).total
    assert found == pytest.approx(wanted.item(), rel=1e-5)
