"""Tests that every evaluator must pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from kdplug.host.registry import tasks
from kdplug.testing.law import Laws, advise, broken, where
from kdplug.testing.sample import seeded


class SmallTask:
    """A task without data files, for evaluators of any task: find the greater of two numbers."""

    metric = "accuracy"

    def about(self) -> str:
        return "Which of two numbers is greater?"

    def build_teacher(self) -> nn.Module:
        return nn.Linear(2, 2)

    def teacher_fit(self) -> None:
        return None

    def build_student(self) -> nn.Module:
        return nn.Linear(2, 2)

    def data(self, part: str) -> Dataset[Any]:
        generator = torch.Generator().manual_seed(len(part))
        numbers = torch.randn(48, 2, generator=generator)
        return TensorDataset(numbers, (numbers[:, 1] > numbers[:, 0]).long())

    def collate(self, examples: list[Any]) -> dict[str, Tensor]:
        numbers, labels = zip(*examples, strict=True)
        return {"input": torch.stack(numbers), "labels": torch.stack(labels)}

    def teacher_adaptor(self, batch: Any, outputs: Tensor) -> dict[str, Tensor]:
        return self.student_adaptor(batch, outputs)

    def student_adaptor(self, batch: Any, outputs: Tensor) -> dict[str, Tensor]:
        losses = nn.functional.cross_entropy(outputs, batch["labels"], reduction="none")
        return {"logits": outputs, "labels": batch["labels"], "losses": losses}

    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        right = torch.cat([model(batch["input"]).argmax(-1) == batch["labels"] for batch in batches])
        return {"accuracy": float(right.double().mean())}


class EvaluatorLaws(Laws):
    """Laws for an evaluator, as pytest tests.

    They evaluate the untrained student of a task. ::

        class TestMyEvaluator(EvaluatorLaws):
            entry = "myevaluator"
            task = "digits"
    """

    task: ClassVar[str | Callable[..., Any]] = SmallTask
    """The task whose student is evaluated: the name of an entry, or a class; by default a small one."""

    task_settings: ClassVar[Mapping[str, Any]] = {}
    """The settings of the task."""

    measures_time: ClassVar[bool] = False
    """Declares that figures are times, which differ from call to call and do not depend on the weights."""

    reads_weights: ClassVar[bool] = True
    """Declares that a student with other weights gets other figures."""

    @classmethod
    def kind_of(cls) -> str:
        return "evaluators"

    def first_law(self) -> tuple[str, Callable[[], object]]:
        return "test_it_returns_figures_by_name", self.figures

    def built_task(self) -> Any:
        """Return the task."""
        task = type(self).task
        if isinstance(task, str):
            return tasks.build({"name": task, **self.task_settings}).target
        return task(**self.task_settings)

    def model(self, task: Any, seed: int = 0) -> nn.Module:
        """Return the model to evaluate, by default an untrained student."""
        with seeded(seed):
            student: nn.Module = task.build_student()
        return student.eval()

    def figures(self, seed: int = 0, draws: int = 0) -> dict[str, Any]:
        """Return the figures of the student of a seed, evaluated after ``draws`` seeds the global generator."""
        task = self.built_task()
        model = self.model(task, seed)
        with seeded(draws), torch.no_grad():
            return self._checked(self.build().target(model, task))

    @staticmethod
    def _checked(found: Any) -> dict[str, Any]:
        if not isinstance(found, Mapping) or not found:
            broken(f"must return figures by name, got {found!r}: return a dict such as {{'accuracy': 0.9}}")
        return dict(found)

    def test_it_returns_figures_by_name(self) -> None:
        """Catches a bare number, an empty mapping, text in place of a number."""
        for name, value in self.figures().items():
            if not isinstance(name, str) or not name.strip():
                broken(f"the name of a figure must be text, got {name!r}: write a word")
            single = isinstance(value, Tensor) and value.numel() == 1
            if isinstance(value, bool) or not (isinstance(value, Real) or single):
                broken(f"{name!r} must be a number, got {value!r}: convert it with float()")
            if not math.isfinite(float(value)):
                broken(f"{name!r} is {float(value)} for an untrained student: clamp a count before dividing by it")

    @advise("Evaluate a copy, as copy.deepcopy(model) makes, or restore what is changed")
    def test_evaluating_leaves_the_model_as_it_was(self) -> None:
        """Catches a model converted to another precision, trained, pruned, or left in training mode."""
        task = self.built_task()
        model = self.model(task)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        required = [one.requires_grad for one in model.parameters()]
        with torch.no_grad():
            self._checked(self.build().target(model, task))
        after = model.state_dict()
        changed = [
            name
            for name, value in before.items()
            if name not in after or after[name].dtype != value.dtype or not torch.equal(after[name], value)
        ]
        if changed or after.keys() != before.keys():
            broken(f"changes {(changed or ['the names of the weights'])[0]} of the model")
        if any(module.training for module in model.modules()):
            broken("leaves the model in training mode")
        if [one.requires_grad for one in model.parameters()] != required:
            broken("changes requires_grad of the model")

    @advise("Draw from a torch.Generator with a fixed seed, or declare measures_time = True")
    @where(lambda laws: not laws.measures_time)
    def test_the_same_model_gets_the_same_figures(self) -> None:
        """Catches random prompts or a random sample of the data: arms would be compared on different examples."""
        one, two = self.figures(draws=1), self.figures(draws=2)
        for name in one:
            if name not in two or float(one[name]) != float(two[name]):
                broken(f"{name!r} differs between two evaluations of one model: {one[name]!r} and {two.get(name)!r}")

    @advise(
        "Measure the model that the call gets, and keep nothing from an earlier call; or declare reads_weights = False"
    )
    @where(lambda laws: laws.reads_weights and not laws.measures_time)
    def test_another_model_gets_other_figures(self) -> None:
        """Catches the figures of the first model kept for all others, or those of a model that the evaluator loads itself."""
        task, evaluator = self.built_task(), self.build().target
        with torch.no_grad():
            found = [self._checked(evaluator(self.model(task, seed), task)) for seed in range(4)]
        values = [[float(value) for value in one.values()] for one in found]
        if all(one == values[0] for one in values):
            broken("four students with different weights get the same figures")

    @advise("Return every figure for every model, nan where there is none")
    def test_every_model_has_the_same_names(self) -> None:
        """Catches a figure that only some models have, which leaves gaps in the table."""
        task, evaluator = self.built_task(), self.build().target
        with torch.no_grad():
            found = [self._checked(evaluator(self.model(task, seed), task)).keys() for seed in range(4)]
        if any(one != found[0] for one in found):
            broken(f"returns {', '.join(found[0])} for one student, and other names for another")
