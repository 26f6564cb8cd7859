"""Tests that every weight scheduler and temperature scheduler must pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdplug.host.component import Component
from kdplug.host.entry import LOCAL, Entry
from kdplug.host.kind import KINDS
from kdplug.host.registry import REGISTRIES
from kdplug.host.signature import read_signature
from kdplug.testing.law import Laws, advise, broken, is_close, where
from kdplug.testing.sample import draw, seeded

_GRID = tuple(step / 20 for step in range(21))


def _weighs(laws: type[SchedulerLaws]) -> bool:
    return laws.kind_of() == "weight_schedulers"


def _warms(laws: type[SchedulerLaws]) -> bool:
    return laws.kind_of() == "temperature_schedulers"


def _warms_as_a_class(laws: type[SchedulerLaws]) -> bool:
    return _warms(laws) and laws._found.signature.makes  # noqa: SLF001  own attribute


class SchedulerLaws(Laws):
    """Tests that every weight scheduler and temperature scheduler must pass, for pytest.

    ::

        class TestMySchedule(SchedulerLaws):
            entry = "myschedule"
            at_start, at_end = 1.0, 0.0
    """

    kind: ClassVar[Literal["weight", "temperature"] | None] = None
    """Kind of scheduler; ``None`` infers it from the registries, or from a callable's inputs."""

    at_start: ClassVar[float | None] = None
    """Declares, for a weight, its value at the start of a run."""

    at_end: ClassVar[float | None] = None
    """Declares, for a weight, its value at the end of a run."""

    direction: ClassVar[Literal["falling", "rising"] | None] = None
    """Declares, for a weight, that it never moves in the opposite direction."""

    keeps_the_mean: ClassVar[bool] = False
    """Declares, for a temperature, that the mean over items is the configured one, unless clamped."""

    classes: ClassVar[int | None] = None
    """Declares, for a temperature, the only number of classes that it takes, such as the width of its layers."""

    @classmethod
    def kind_of(cls) -> str:
        if cls.kind is not None:
            return f"{cls.kind}_schedulers"
        if isinstance(cls.entry, str):
            found = [
                plural for plural in ("weight_schedulers", "temperature_schedulers") if cls.entry in REGISTRIES[plural]
            ]
            return found[0] if found else "weight_schedulers"
        assert cls.entry is not None
        probe = Entry(KINDS["temperature_schedulers"], "scheduler", LOCAL, "", cls.entry, "local")
        inputs = set(read_signature(probe, cls.entry).inputs)
        return "temperature_schedulers" if inputs - KINDS["weight_schedulers"].inputs else "weight_schedulers"

    def first_law(self) -> tuple[str, Callable[[], object]]:
        if _weighs(type(self)):
            return "test_the_weight_is_a_finite_number_throughout", lambda: self.weight(0.5)
        return "test_each_item_gets_a_positive_temperature", lambda: self.temperatures(*self._logits(3, 4))

    def weight(self, progress: float) -> Any:
        """Return the weight at ``progress`` in a run of 20 steps."""
        return self.build()(progress=progress, step=round(progress * 20), total_steps=20)

    def temperature(self, student: Tensor, teacher: Tensor, base: float = 4.0) -> Any:
        """Return the scheduled temperature for ``base``, in the middle of a run."""
        return self._call(self._seeded(student.dtype), student, teacher, base)

    def _call(self, scheduler: Any, student: Tensor, teacher: Tensor, base: float = 4.0) -> Any:
        values = {"student_logits": student, "teacher_logits": teacher, "temperature": base}
        with seeded(1):
            return scheduler(**values, progress=0.5, step=10, total_steps=20)

    def _seeded(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Component:
        """Build the scheduler with parameters of ``dtype``, drawn from ``seed``."""
        with seeded(seed):
            component = self.build()
        if isinstance(component.target, nn.Module):
            component.target.to(dtype)
        return component

    def _logits(self, *items: int, classes: int = 5) -> tuple[Tensor, Tensor]:
        """Return logits of both sides, of the declared number of classes if there is one."""
        shape = (*items, self.classes or classes)
        return draw(shape, 1), draw(shape, 2)

    def temperatures(self, student: Tensor, teacher: Tensor, base: float = 4.0) -> Tensor:
        """Return the scheduled temperature of each item."""
        found = torch.as_tensor(self.temperature(student, teacher, base), dtype=torch.float64).detach()
        found = found.reshape(()) if found.numel() == 1 else found
        if found.dim() and found.shape != student.shape[:-1]:
            broken(f"returned temperatures of shape {list(found.shape)} for items {list(student.shape[:-1])}")
        return found.expand(student.shape[:-1])

    @where(_weighs)
    def test_the_weight_is_a_finite_number_throughout(self) -> None:
        """Catches a tensor, which waits for its device at every step, a division by 0 at the first or last step."""
        for progress in _GRID:
            value = self.weight(progress)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                broken(f"is {value!r} at progress {progress:g}: a weight must be a finite Python number")

    @advise("Clamp the weight to a minimum of 0")
    @where(_weighs)
    def test_the_weight_is_never_negative(self) -> None:
        """Catches a schedule that runs past its end and drives the student away from the teacher."""
        for progress in _GRID:
            if self.weight(progress) < 0:
                broken(
                    f"is {self.weight(progress):.3g} at progress {progress:g}: a negative weight would maximize the loss"
                )

    @advise("Compute the weight from progress alone, and do not count calls")
    @where(_weighs)
    def test_the_weight_depends_on_progress_alone(self) -> None:
        """Catches a schedule that counts its own calls, so that a resumed or second run gets other weights."""
        scheduler = self.build()
        values = {p: scheduler(progress=p, step=round(p * 20), total_steps=20) for p in _GRID}
        for progress in reversed(_GRID):
            again = scheduler(progress=progress, step=round(progress * 20), total_steps=20)
            if again != values[progress]:
                broken(f"was {values[progress]:.3g} at progress {progress:g}, then {again:.3g} on a second call")

    @advise("Compute the weight from progress, which is 0 at the start and 1 at the end")
    @where(lambda laws: _weighs(laws) and (laws.at_start, laws.at_end) != (None, None))
    def test_the_weight_starts_and_ends_as_declared(self) -> None:
        """Catches a schedule that is off by one and never reaches its end."""
        for what, progress, expected in (("starts", 0.0, self.at_start), ("ends", 1.0, self.at_end)):
            if expected is not None and not math.isclose(self.weight(progress), expected, abs_tol=1e-9):
                broken(f"{what} at {self.weight(progress):.6g}, but {expected:.6g} is declared")

    @advise("Swap the values at start and end, or declare the other direction")
    @where(lambda laws: _weighs(laws) and laws.direction is not None)
    def test_the_weight_moves_one_way(self) -> None:
        """Catches growth and decay swapped; a jump after the first step."""
        sign = 1 if self.direction == "rising" else -1
        for before, after in pairwise(_GRID):
            if sign * (self.weight(after) - self.weight(before)) < -1e-12:
                broken(
                    f"is declared {self.direction}, but goes from {self.weight(before):.3g} to {self.weight(after):.3g}"
                )

    @advise("Clamp the temperature to a minimum above 0")
    @where(_warms)
    def test_each_item_gets_a_positive_temperature(self) -> None:
        """Catches a negative temperature, which inverts the distribution; ``nan`` if student equals teacher."""
        student, teacher = self._logits(3, 4)
        many = self._logits(6, classes=1000)
        many[0][0, 0] = 50.0
        cases = {
            "ordinary logits": (student, teacher),
            "logits [items, classes]": (student[0], teacher[0]),
            "student equal to teacher": (student, student.clone()),
            "opposite logits": (student, -student),
            f"{self.classes or 1000} classes": many,
            "logits of 1e4": (student * 1e4, teacher * 1e4),
            "logits of 0": (torch.zeros_like(student), torch.zeros_like(student)),
        }
        for what, (one, two) in cases.items():
            for dtype in (torch.float64, torch.float32):
                found = self.temperatures(one.to(dtype), two.to(dtype))
                if not bool(torch.isfinite(found).all()) or not bool((found > 0).all()):
                    broken(f"{what}: the temperature is {float(found.min()):.3g}, but must be positive and finite")

    @advise("Replace -inf before computing a norm, a mean or a standard deviation")
    @where(_warms)
    def test_a_class_that_the_teacher_rules_out_stays_finite(self) -> None:
        """Catches a norm of ``-inf``, which makes every temperature ``nan``."""
        student, teacher = self._logits(6)
        teacher[:, 1] = -math.inf
        found = self.temperatures(student, teacher)
        if not bool(torch.isfinite(found).all()) or not bool((found > 0).all()):
            broken("a class with teacher logit -inf gives a temperature that is not positive and finite")

    @where(_warms)
    def test_the_temperature_carries_no_gradient(self) -> None:
        """Catches a student that learns to raise its own temperature. Gradient of the scheduler's parameters is allowed."""
        student, teacher = (side.requires_grad_() for side in self._logits(6))
        found = self.temperature(student, teacher)
        if not isinstance(found, Tensor) or not found.requires_grad:
            return
        gradients = torch.autograd.grad(found.sum(), (student, teacher), allow_unused=True)
        for side, gradient in zip(("student", "teacher"), gradients, strict=True):
            if gradient is not None:
                broken(
                    f"the temperature has a gradient with respect to the {side}'s logits: detach the logits, or compute the temperature under "
                    "torch.no_grad() if the scheduler has no parameters"
                )

    @where(_warms_as_a_class)
    def test_its_parameters_are_trained(self) -> None:
        """Catches a parameter that is detached, frozen, or in a plain attribute: it would never change."""
        component = self._seeded()
        target: Any = component.target
        parts = list(target.modules()) if isinstance(target, nn.Module) else [target]
        loose = [name for part in parts for name, value in vars(part).items() if isinstance(value, Tensor)]
        if loose:
            broken(
                f"has tensors in plain attributes: {', '.join(loose)}. Derive the class from torch.nn.Module, and register each "
                "tensor as an nn.Parameter or a buffer"
            )
        parameters = dict(target.named_parameters()) if isinstance(target, nn.Module) else {}
        if not parameters:
            return
        found = self._call(component, *self._logits(6))
        gradients: Any = [None] * len(parameters)
        trained = [one for one in parameters.values() if one.requires_grad]
        if len(trained) < len(parameters):
            broken("a parameter does not require a gradient: make it a buffer if it should not be trained")
        if isinstance(found, Tensor) and found.requires_grad:
            gradients = torch.autograd.grad(found.sum(), trained, allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                broken(
                    f"the gradient does not reach parameter {name}, so it would never be trained: remove detach(), item() and "
                    "torch.no_grad() between the parameter and the temperature"
                )

    @where(_warms_as_a_class)
    def test_a_loaded_state_gives_the_same_temperature(self) -> None:
        """Catches state that is missing from checkpoints, so that a resumed run differs."""
        original, loaded = self._seeded(), self._seeded(seed=7)
        if not isinstance(original.target, nn.Module) or not isinstance(loaded.target, nn.Module):
            return
        student, teacher = self._logits(6)
        for _ in range(2):
            self._call(original, student, teacher)
        with torch.no_grad():
            for parameter in original.target.parameters():
                parameter.add_(0.1)
        loaded.target.load_state_dict(original.target.state_dict(), strict=True)
        found, expected = (
            torch.as_tensor(self._call(one, student, teacher), dtype=torch.float64).detach()
            for one in (loaded, original)
        )
        if not is_close(found, expected):
            broken(
                "a scheduler that loads the state_dict of a used one gives different temperatures: keep all state in buffers"
            )

    @advise("Use x / y instead of x.div_(y)")
    @where(_warms)
    def test_logits_are_not_modified(self) -> None:
        """Catches an in-place normalization, after which the loss reads other logits."""
        student, teacher = self._logits(6)
        self.temperature(student, teacher)
        if not all(map(torch.equal, (student, teacher), self._logits(6))):
            broken("modified the logits in place")

    @advise("Scale the configured temperature, or add to it")
    @where(_warms)
    def test_the_configured_temperature_is_used(self) -> None:
        """Catches a scheduler that ignores the configured temperature."""
        student, teacher = self._logits(6)
        if is_close(self.temperatures(student, teacher, 4.0), self.temperatures(student, teacher, 8.0)):
            broken("gives the same result for configured temperatures of 4 and 8")

    @advise("Compute each item's temperature from its own logits")
    @where(_warms)
    def test_temperatures_follow_their_items(self) -> None:
        """Catches a temperature assigned to another item."""
        student, teacher = self._logits(6)
        order = torch.tensor([5, 0, 1, 4, 3, 2])
        if not is_close(self.temperatures(student[order], teacher[order]), self.temperatures(student, teacher)[order]):
            broken("reordered items do not get their temperatures in the same order")

    @advise("Subtract the mean of the correction over items, or do not declare keeps_the_mean")
    @where(lambda laws: _warms(laws) and laws.keeps_the_mean)
    def test_the_mean_temperature_is_the_configured_one(self) -> None:
        """Catches a flipped sign, a correction that is not centred."""
        mean = float(self.temperatures(*self._logits(3, 4), 8.0).mean())
        if not math.isclose(mean, 8.0, rel_tol=1e-9):
            broken(f"the mean over items is {mean:.6g} for a configured temperature of 8")
