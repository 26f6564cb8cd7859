"""What is wrong with an argument is said where it was written, before anything is trained."""

from __future__ import annotations

import warnings

import pytest
from small_run import make_batches, make_distiller, make_student, make_teacher, sgd
from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.basic import BasicDistiller
from kdplug.distillers.general import GeneralDistiller
from kdplug.distillers.multi_task import MultiTaskDistiller
from kdplug.distillers.multi_teacher import MultiTeacherDistiller
from kdplug.distillers.trainer import BasicTrainer
from kdplug.errors import ConfigError

TRAINING, CONFIG = TrainingConfig(device="cpu"), DistillationConfig()
ONE_TEACHER = [BasicDistiller, GeneralDistiller]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("callback", "save", "must be a callable, got 'save'"),
        ("batch_postprocessor", 5, "must be a callable, got 5"),
        ("scheduler_class", 5, "must be a callable, got 5"),
        ("scheduler_args", [1], r"must be a mapping, got \[1\]"),
        ("scheduler", 5, r"must be a learning-rate scheduler, which has a step\(\), got 5"),
        ("max_grad_norm", "1", "must be a number, or None, got '1'"),
        ("max_grad_norm", float("nan"), "must be a number, or None, got nan"),
        ("evaluation", 5, "must be a kdplug.Evaluation, got 5"),
        ("resume", True, "must be 'auto', a checkpoint folder, or None, got True"),
        ("resume_changed", "no", "must be true or false, got 'no'"),
    ],
)
def test_an_argument_of_train_that_cannot_be_meant_is_named_before_the_first_step(tmp_path, name, value, message):
    student = make_student()
    with pytest.raises(ConfigError, match=f"^{name}: {message}"):
        make_distiller(tmp_path, student).train(sgd(student), make_batches(2), 1, **{name: value})
    assert not list(tmp_path.iterdir())


def test_an_optimizer_is_one(tmp_path):
    with pytest.raises(ConfigError, match=r"^optimizer: must be a torch optimizer, got None"):
        make_distiller(tmp_path, make_student()).train(None, make_batches(2), 1)


@pytest.mark.parametrize("distiller", ONE_TEACHER)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ({}, CONFIG, make_teacher(), make_student()),
            "train_config: must be a TrainingConfig, got dict: use TrainingConfig.f",
        ),
        ((TRAINING, {}, make_teacher(), make_student()), "distill_config: must be a DistillationConfig, got dict"),
        ((TRAINING, CONFIG, "bert", make_student()), "model_T: must be a model, (an external teacher|got str)"),
        ((TRAINING, CONFIG, make_teacher(), None), "model_S: must be a model, got NoneType"),
        ((TRAINING, CONFIG, make_teacher(), make_student(), 5), "adaptor_T: must be a callable, got int"),
        ((TRAINING, CONFIG, make_teacher(), make_student(), None, {}), "adaptor_S: must be a callable, got dict"),
    ],
)
def test_what_a_distiller_is_made_of_is_checked(distiller, arguments, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        distiller(*arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BasicTrainer({}, make_student()), "train_config: must be a TrainingConfig"),
        (lambda: BasicTrainer(TRAINING, "bert"), "model: must be a model, got str"),
        (lambda: BasicTrainer(TRAINING, make_student(), 5), "adaptor: must be a callable"),
        (
            lambda: MultiTeacherDistiller(TRAINING, {}, [make_teacher()], make_student()),
            "distill_config: must be a Dist",
        ),
        (lambda: MultiTeacherDistiller(TRAINING, CONFIG, [make_teacher()], "bert"), "model_S: must be a model"),
        (
            lambda: MultiTaskDistiller({}, CONFIG, {"a": make_teacher()}, make_student()),
            "train_config: must be a Train",
        ),
        (
            lambda: MultiTaskDistiller(TRAINING, {"a": {}}, {"a": make_teacher()}, make_student()),
            "a.distill_config: must",
        ),
    ],
)
def test_so_is_what_the_others_are_made_of(make, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        make()


class Open(nn.Module):
    """A student that takes any argument, as many models of transformers do."""

    def __init__(self):
        super().__init__()
        self.inner = make_student()

    def forward(self, x, **_more):
        return self.inner(x)


def test_a_misspelt_argument_that_the_models_would_swallow_is_reported(tmp_path):
    student, teacher = Open(), Open()
    distiller = make_distiller(tmp_path, student, teacher)
    with pytest.warns(UserWarning, match="'num_step' is not an argument of train.*Did you mean 'num_steps'"):
        distiller.train(sgd(student), make_batches(2), 1, num_step=5)


def test_an_argument_of_the_models_is_not_taken_for_a_misspelt_one(tmp_path):
    student, teacher = Open(), Open()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_distiller(tmp_path, student, teacher).train(
            sgd(student), make_batches(2), 1, output_hidden_states=True, output_attentions=False, labels=None
        )


def test_four_distillers_have_one_and_the_same_train():
    assert BasicDistiller.train is GeneralDistiller.train is MultiTeacherDistiller.train is BasicTrainer.train
