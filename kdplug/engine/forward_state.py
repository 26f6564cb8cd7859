"""Save and restore the state that a forward pass changes, except gradients."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kdplug.engine.teacher import TeacherSide
from kdplug.engine.training_module import TrainingModule, split, to_device


@contextmanager
def modes(*, training: nn.Module | None = None, evaluating: nn.Module | None = None) -> Iterator[None]:
    """Put ``training`` in train mode and ``evaluating`` in eval mode; restore the mode of every submodule on exit.

    A submodule that belongs to both is put in eval mode.
    """
    found = [
        (module, module.training) for root in (training, evaluating) if root is not None for module in root.modules()
    ]
    if training is not None:
        training.train()
    if evaluating is not None:
        evaluating.eval()
    try:
        yield
    finally:
        for module, mode in found:
            module.training = mode


class ForwardState:
    """Snapshot of the state that a forward pass of ``model`` changes: torch's random state and the buffers."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)


@contextmanager
def preserve_forward_state(model: nn.Module) -> Iterator[None]:
    """Restore the forward state of ``model`` after the block."""
    before = ForwardState(model)
    try:
        yield
    finally:
        before.restore()


def materialize(
    pair: TrainingModule,
    teacher: TeacherSide | None,
    batch: Any,
    model_args: Mapping[str, Any],
    device: torch.device,
    *,
    num_examples: int | None = None,
) -> None:
    """Materialize the objective's ``auto`` projections from the outputs of both models for ``batch``.

    ``num_examples`` is the number of examples in the data, of the batch's task if there are several.

    Both models run once, without gradient and in eval mode. Random state and buffers are unchanged.
    """
    parts = split(batch)
    with torch.random.fork_rng(_devices(device)), torch.no_grad(), modes(evaluating=pair):
        read = None
        if teacher is not None:
            read = teacher(to_device(parts.teacher, device), model_args, to_device(parts.cache, device))
        outputs = pair.outputs(to_device(parts.student, device), model_args)
    pair.objective.materialize(student=outputs, teacher=read, num_examples=num_examples)
    pair.to(device)


def _devices(device: torch.device) -> list[int]:
    return [torch.cuda.current_device()] if device.type == "cuda" else []


def random_state(generators: tuple[torch.Generator, ...] = ()) -> dict[str, Any]:
    """Return the state of Python's, NumPy's (if imported) and torch's global generators, and of ``generators``.

    The result is plain data and tensors, which an archive can hold.
    """
    numpy = sys.modules.get("numpy")
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": _from_numpy(numpy.random.get_state()) if numpy is not None else None,
        "torch": torch.get_rng_state(),
        "cuda": list(cuda),
        "generators": [generator.get_state() for generator in generators],
    }


def restore_random_state(state: dict[str, Any], generators: tuple[torch.Generator, ...] = ()) -> None:
    """Restore every generator to a state returned by ``random_state``."""
    random.setstate(state["python"])
    numpy = sys.modules.get("numpy")
    if numpy is not None and state["numpy"] is not None:
        name, key, position, has_gauss, gauss = state["numpy"]
        numpy.random.set_state((name, numpy.asarray(key, dtype=numpy.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    for generator, saved in zip(generators, state["generators"], strict=True):
        generator.set_state(saved)


@contextmanager
def random_state_kept(generators: tuple[torch.Generator, ...] = ()) -> Iterator[None]:
    """Restore the random state after the block."""
    state = random_state(generators)
    try:
        yield
    finally:
        restore_random_state(state, generators)


def _from_numpy(state: Any) -> tuple[Any, ...]:
    name, key, position, has_gauss, gauss = state
    return name, [int(word) for word in key], int(position), int(has_gauss), float(gauss)
