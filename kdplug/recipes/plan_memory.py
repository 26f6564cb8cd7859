"""How much memory a distillation needs beside the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn

from kdplug.engine.optimizer import add_groups, check_student
from kdplug.errors import RunError
from kdplug.recipes.optimizer import make_optimizer
from kdplug.recipes.plan_sample import Sample, given, tensors


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """Bytes that something takes, and how that is known."""

    name: str
    bytes: int
    how: str


def memory(sample: Sample) -> list[MemoryItem]:
    """The items of an estimate, from one real step with the recipe's optimizer. The student is changed by it.

    What is left out: the teacher's own activations, which are gone after each of its layers, the workspace of kernels, and
    what the framework takes for itself.

    Raises: ``RunError`` where the optimizer cannot take the step; ``ConfigError`` where it cannot be made.
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
    outputs = size(tensors(given(sample.of_teacher)))
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
            f"measured: what autograd keeps for the backward pass of a batch of {batch}",
        ),
        MemoryItem("teacher's outputs", outputs, f"measured: what its adaptor returned for a batch of {batch}"),
    ]


def size(found: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each once."""
    storages = [tensor.untyped_storage() for tensor in found]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _held(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
