"""Estimate the memory of a distillation from one real step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn

from kdplug.contracts.tree import tensors
from kdplug.engine.optimizer import add_groups, check_student
from kdplug.errors import RunError
from kdplug.recipes.preview.sample import Sample, given
from kdplug.recipes.training import make_optimizer


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """An item of the memory estimate: its bytes, and how they were determined."""

    name: str
    bytes: int
    how: str


def memory(sample: Sample) -> list[MemoryItem]:
    """Estimate memory from one real step with the recipe's optimizer. This changes the student's weights.

    The estimate excludes the teacher's activations, which are freed layer by layer, kernel workspaces, and the
    framework's own memory.

    Raises: ``RunError`` if the optimizer cannot take the step; ``ConfigError`` if it cannot be built.
    """
    optimizer = make_optimizer(sample.recipe.training, sample.student.parameters())
    check_student(optimizer, sample.student)
    add_groups(optimizer, sample.objective.param_groups())
    learned = [*sample.student.parameters(), *sample.objective.parameters()]
    sample.total.backward()  # type: ignore[no-untyped-call]
    gradients = size(one.grad for one in learned if one.grad is not None)
    try:
        optimizer.step()
    except (RuntimeError, TypeError) as error:
        name = sample.recipe.training.optimizer
        raise RunError(f"{name} cannot take a step: {error}", field="training.optimizer") from error
    state = size(tensors(list(optimizer.state.values())))
    outputs = size(tensors(given(sample.of_teacher)), apart=_held(sample.teacher))
    batch = sample.recipe.training.batch_size
    return [
        MemoryItem("teacher, weights", size(_held(sample.teacher)), "counted"),
        MemoryItem("student, weights", size(_held(sample.student)), "counted"),
        MemoryItem("projections and losses, weights", size(_held(sample.objective)), "counted"),
        MemoryItem("gradients", gradients, "measured after one backward pass"),
        MemoryItem("optimizer state", state, f"measured after one step of {sample.recipe.training.optimizer}"),
        MemoryItem(
            "activations",
            sample.activations,
            f"measured: tensors saved by autograd for the backward pass of a batch of {batch}",
        ),
        MemoryItem("teacher's outputs", outputs, f"measured: values returned by its adaptor for a batch of {batch}"),
    ]


def size(found: Iterable[Tensor], apart: Iterable[Tensor] = ()) -> int:
    """Return the size in bytes of the tensors' storages, each counted once, without those of ``apart``."""
    storages = [tensor.untyped_storage() for tensor in found]
    others = {tensor.untyped_storage().data_ptr() for tensor in apart}
    return sum({one.data_ptr(): one.nbytes() for one in storages if one.data_ptr() not in others}.values())


def _held(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
