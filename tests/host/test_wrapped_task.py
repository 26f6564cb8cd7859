"""A task that wraps another one: what it delegates, its settings, its errors, its schema and record."""

from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import pytest
from jsonschema import Draft7Validator

import kdplug
from kdplug.config.schema.build import schema_of
from kdplug.contracts import task as contract
from kdplug.contracts.task import PredictsExamples, SpansVocabularies, StartsStudent, Task
from kdplug.errors import ConfigError, KdplugError, SettingError
from kdplug.host.active import isolated
from kdplug.host.metadata import scan
from kdplug.host.wrapped_task import OPTIONAL_METHODS
from kdplug.recipes.cache_provenance import fingerprint
from kdplug.report.record import run_record
from kdplug.testing import TaskLaws


class Plain(kdplug.WrappedTask):
    """Changes nothing."""


class Scaled(kdplug.WrappedTask):
    """Multiplies images.

    Settings: ``factor``, the number; ``base``, the task whose images they are.
    """

    def __init__(self, *, base: kdplug.BaseTask, factor: float = 2.0) -> None:
        super().__init__(base=base)
        self.factor = factor

    def collate(self, examples):
        batch = self.base.collate(examples)
        return {**batch, "images": batch["images"] * self.factor}


DIGITS = {"name": "digits", "labels_per_class": 3}


def recipe(task, **distillation):
    distillation = distillation or {"kd_loss_type": {"name": "kl", "t2": True}}
    return kdplug.Recipe.from_dict({"task": task, "distillation": distillation, "training": {"num_epochs": 1}})


def register():
    kdplug.tasks.register("plain")(Plain)
    kdplug.tasks.register("scaled")(Scaled)


@pytest.fixture(autouse=True)
def registered():
    with isolated(scan()):
        register()
        yield


with isolated(scan()):  # a class of laws looks its entry up when it is defined
    register()

    class TestPlain(TaskLaws):
        entry = "local:plain"
        settings: ClassVar = {"base": DIGITS}

    class TestScaled(TaskLaws):
        entry = "local:scaled"
        settings: ClassVar = {"base": {"name": "plain", "base": DIGITS}, "factor": 0.5}


def test_every_optional_method_of_a_task_is_delegated_but_its_fingerprint():
    options = [
        one for one in vars(contract).values() if getattr(one, "_is_runtime_protocol", False) and one is not Task
    ]
    names = {
        name for one in options for name, value in vars(one).items() if callable(value) and not name.startswith("_")
    }
    names -= {"fingerprint", "registered"}
    assert set(OPTIONAL_METHODS) == names


def test_a_wrapped_task_offers_what_its_base_offers_and_no_more():
    task = Plain(base=DIGITS)
    assert isinstance(task, Task)
    assert isinstance(task, PredictsExamples)
    assert not isinstance(task, StartsStudent)
    assert isinstance(task, SpansVocabularies)
    assert task.vocabulary_difference == ""
    assert (task.metric, task.unit, task.is_lower_better) == ("accuracy", "examples", False)
    assert "fingerprint" not in dir(task)


def test_a_method_that_is_overridden_is_the_one_that_is_called():
    one, two = (task(base=DIGITS) for task in (Plain, Scaled))
    examples = [one.data("test")[0]]
    assert (two.collate(examples)["images"] == 2 * one.collate(examples)["images"]).all()


def test_a_task_may_be_given_itself():
    base = kdplug.tasks.load("digits")(labels_per_class=3)
    assert Plain(base=base).base is base


@pytest.mark.parametrize("same", [copy.deepcopy, lambda task: pickle.loads(pickle.dumps(task))])
def test_a_wrapped_task_can_be_copied_to_a_worker(same):
    task = same(Scaled(base=DIGITS))
    assert len(task.data("baseline")) == 30
    assert isinstance(task, PredictsExamples)


def test_a_name_alone_is_a_base():
    assert Plain(base="digits").base.labels_per_class == 10


MISTAKES = {
    "an unknown setting of the base": ({"base": {"name": "digits", "label": 3}}, KdplugError, r"^task\.base: kdplug-tasks:digits has no setting 'label'\. Did you mean 'label_seed'"),
    "a wrong value": ({"base": {"name": "digits", "labels_per_class": 0}}, SettingError, r"^task\.base\.labels_per_class: must be >= 1"),
    "an unknown base": ({"base": "digts"}, KdplugError, r"^task\.base: no task named 'digts'\. Did you mean 'digits'"),
    "no base": ({}, SettingError, r"^task\.base: is required by local:plain"),
    "a number": ({"base": 3}, ConfigError, r"^task\.base: cannot read 3 as a component"),
    "deep": (
        {"base": {"name": "plain", "base": {"name": "plain", "base": {"name": "digits", "labels_per_class": 0}}}},
        SettingError,
        r"^task\.base\.base\.base\.labels_per_class: must be >= 1",
    ),
    "too deep": (
        {"base": {"name": "plain", "base": {"name": "plain", "base": {"name": "plain", "base": {"name": "plain", "base": DIGITS}}}}},
        ConfigError,
        r"^task\.base: tasks may wrap each other at most",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_path(name):
    from kdplug.recipes.task import build_task

    settings, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        build_task(recipe({"name": "plain", **settings}))


def test_the_record_holds_every_setting_of_both_and_both_entries():
    made = recipe({"name": "scaled", "base": DIGITS})
    spec = kdplug.tasks.build(made.task).qualified_spec()
    assert spec["base"]["name"] == "kdplug-tasks:digits"
    assert spec["base"]["teacher_epochs"] == 10
    record = run_record(made, spec, made.distillation.resolved())
    assert [entry["path"] for entry in record["entries"]][:2] == ["task", "task.base"]


def test_a_teacher_cache_is_of_the_settings_of_both():
    one, two = (recipe({"name": "scaled", "base": DIGITS, "factor": factor}) for factor in (1.0, 2.0))
    tasks = [kdplug.tasks.build(made.task).target for made in (one, two)]
    assert fingerprint(one, tasks[0]) != fingerprint(two, tasks[1])


def test_the_schema_knows_the_settings_of_the_base():
    validator = Draft7Validator(schema_of("recipe").data)

    def places(task):
        data = {"task": task, "distillation": {}, "training": {"num_epochs": 1}}
        return [list(error.absolute_path) for error in validator.iter_errors(data)]

    assert places({"name": "scaled", "base": DIGITS}) == []
    assert places({"name": "scaled", "base": {"name": "scaled", "base": "digits"}}) == []
    assert places({"name": "scaled", "base": {"name": "digits", "labels_per_class": 0}}) == [
        ["task", "base", "labels_per_class"]
    ]
    assert places({"name": "scaled", "base": "digts"}) == [["task", "base"]]
