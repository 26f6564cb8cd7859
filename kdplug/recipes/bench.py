"""The three models of a recipe: the teacher, the student distilled, and the student without distillation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

from kdplug.config.recipe import Recipe, RecipeTraining
from kdplug.contracts.task import Part, Task
from kdplug.distillers.general import GeneralDistiller
from kdplug.recipes.budget import Budget
from kdplug.recipes.data import test_loader, training_loader
from kdplug.recipes.history import History
from kdplug.recipes.measure import count_parameters, evaluate, seconds_per_example
from kdplug.recipes.optimizer import make_optimizer, make_schedule
from kdplug.recipes.result import Figures
from kdplug.recipes.supervised import train_on_labels


@dataclass(frozen=True, slots=True)
class Bench:
    """Makes and trains each model of a recipe, from the recipe's seed.

    ``say`` is given one sentence before each training.
    """

    recipe: Recipe
    task: Task
    say: Callable[[str], None]
    show_progress: bool

    def teacher(self) -> nn.Module:
        """The teacher, fitted where the task says how."""
        set_seed(self.recipe.seed)
        model, fit = self.task.build_teacher(), self.task.teacher_fit()
        if fit is not None:
            training = RecipeTraining(
                lr=fit["learning_rate"], lr_schedule="linear", num_epochs=fit["epochs"], batch_size=fit["batch_size"]
            )
            loader = self._loader("teacher", training.batch_size)
            config = self.recipe.training_config().model_copy(update={"gradient_accumulation_steps": 1})
            self.say(f"Fitting the teacher: {Budget.of(training, loader).total_steps} optimizer steps")
            train_on_labels(model, self.task.teacher_adaptor, loader, training, config)
        return model

    def distilled(self, teacher: nn.Module) -> tuple[nn.Module, History]:
        """The student after distillation, and what happened on the way."""
        training, student = self.recipe.training, self._student()
        loader = self._loader("distillation", training.batch_size)
        budget = Budget.of(training, loader)
        self.say(f"Distilling the student: {budget.total_steps} optimizer steps")
        history = History(lambda model: evaluate(self.task, model, self._test())[self.task.metric])
        GeneralDistiller(
            self.recipe.training_config(),
            self.recipe.distillation,
            teacher,
            student,
            self.task.teacher_adaptor,
            self.task.student_adaptor,
            observers=[history],
            strict=True,
            show_progress=self.show_progress,
        ).train(
            make_optimizer(training, student.parameters()),
            loader,
            num_epochs=training.num_epochs,
            num_steps=training.num_steps,
            max_grad_norm=training.max_grad_norm,
            **make_schedule(training, budget.total_steps),
        )
        return student, history

    def baseline(self) -> tuple[nn.Module, int]:
        """The student trained on its labels alone, for as many steps on batches of the same sizes, and those steps."""
        training, student = self.recipe.training, self._student()
        loader = self._loader("baseline", training.batch_size, like="distillation")
        self.say(f"Training the same student without distillation: {Budget.of(training, loader).total_steps} steps")
        done = train_on_labels(student, self.task.student_adaptor, loader, training, self.recipe.training_config())
        return student, done.step

    def measured(self, *models: nn.Module) -> list[Figures]:
        """The figures of each model on the test part."""
        seconds = seconds_per_example(models, self._test())
        return [
            Figures(evaluate(self.task, model, self._test()), count_parameters(model), time)
            for model, time in zip(models, seconds, strict=True)
        ]

    def _student(self) -> nn.Module:
        set_seed(self.recipe.seed)
        return self.task.build_student()

    def _loader(self, part: Part, batch_size: int, like: Part | None = None) -> DataLoader[Any]:
        return training_loader(
            self.task,
            part,
            batch_size=batch_size,
            seed=self.recipe.seed,
            like=like or part,
            workers=self.recipe.training.num_workers,
        )

    def _test(self) -> DataLoader[Any]:
        return test_loader(self.task, batch_size=self.recipe.training.eval_batch_size)
