"""A recipe whose teacher does not stay as it is ends with an error, whichever command runs it."""

from __future__ import annotations

import pytest
from recipes.conftest import Signs
from torch import nn

import kdplug
from kdplug.errors import RunError
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe


class Restless(nn.Linear):
    """In train mode from its first forward pass on."""

    def forward(self, x):
        self.train()
        return super().forward(x)


class RestlessSigns(Signs):
    def build_teacher(self):
        return Restless(4, 2)


class SharingSigns(Signs):
    """The student starts in the teacher's memory."""

    starts_student = True

    def start_student(self, student, teacher):
        student.load_state_dict(teacher.state_dict(), assign=True)


@pytest.mark.parametrize("ask", [run_recipe, plan_recipe])
def test_a_teacher_that_puts_itself_in_train_mode_is_refused(signs, ask):
    kdplug.tasks.register("restless")(RestlessSigns)
    with pytest.raises(RunError, match=r"after a forward pass of the teacher, Restless is in train mode"):
        ask(signs("task=restless"))


def test_no_cache_is_made_of_a_teacher_in_train_mode(signs, tmp_path):
    kdplug.tasks.register("restless")(RestlessSigns)
    with pytest.raises(RunError, match=r"after a forward pass of the teacher, Restless is in train mode"):
        cache_recipe(signs("task=restless"), tmp_path / "cache")


@pytest.mark.parametrize("ask", [run_recipe, plan_recipe])
def test_a_student_in_the_teachers_memory_is_refused(signs, ask):
    kdplug.tasks.register("sharing")(SharingSigns)
    with pytest.raises(RunError, match=r"share trainable parameters \('weight' and 1 more\).*the teacher's 'weight'"):
        ask(signs("task=sharing"))
