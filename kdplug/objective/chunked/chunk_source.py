"""One model's logits, read one chunk of items at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor

from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.host.memory import available_memory
from kdplug.objective.numerics import is_half

ChunkSetting = int | Literal["auto", "whole"]

_MOST = {"cpu": 512}
_MOST_ELSEWHERE = 4096
"""Items per chunk; longer chunks do not make the matrix products faster."""

_BUDGET = {"cpu": 768 << 20}
_BUDGET_ELSEWHERE = 4 << 30
"""Bytes for the student's and teacher's chunk buffers together."""

_CACHED = 1 << 17
_CACHED_ELSEWHERE = 1 << 26
"""Elements of a block that stays in a CPU's cache over several operations. A GPU needs few operations instead."""


def chunk_length(setting: ChunkSetting, items: int, classes: int, itemsize: int, device: torch.device) -> int:
    """Return the number of items per chunk: ``logit_chunk``, or what a memory budget allows (at least 16).

    ``itemsize`` is the size in bytes of one logit in a buffer. Chunks have about equal length, none longer than the setting.
    """
    if setting == "whole":
        return max(items, 1)
    if setting == "auto":
        budget = _BUDGET.get(device.type, _BUDGET_ELSEWHERE)
        longest = max(16, min(_MOST.get(device.type, _MOST_ELSEWHERE), budget // (2 * classes * itemsize)))
    else:
        longest = setting
    return math.ceil(items / max(1, math.ceil(items / longest)))


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes on ``device``, or ``None`` if unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available_memory() if device.type == "cpu" else None


def chunks(items: int, length: int) -> Iterator[slice]:
    """Yield slices of ``length`` items that cover them all; the last may be shorter."""
    return (slice(start, min(start + length, items)) for start in range(0, items, length))


def blocks(items: int, classes: int, device: torch.device) -> Iterator[slice]:
    """Yield slices of a few rows of ``[items, classes]`` that fit a CPU cache."""
    elements = _CACHED if device.type == "cpu" else _CACHED_ELSEWHERE
    return chunks(items, max(1, elements // classes))


_PANEL = 4096
"""Classes per panel of a weight's gradient, which is computed in half precision and accumulated in float32."""


class StudentChunks(Protocol):
    """Logits of a chunk, read in blocks of rows, each of which is then replaced by its gradient.

    ``inputs`` are the tensors that ``gradients`` belong to, in order, after the backward step of every chunk.
    """

    inputs: tuple[Tensor, ...]

    def load(self, chunk: slice) -> None:
        """Load the logits of these items."""

    def block(self, rows: slice) -> Tensor:
        """Return some rows of the chunk, in the working type. The caller may overwrite them."""

    def put(self, rows: slice, gradient: Tensor) -> None:
        """Store the gradient with respect to the last ``block``."""

    def learn(self) -> None:
        """Propagate the gradient of the chunk to the inputs."""

    @property
    def gradients(self) -> tuple[Tensor | None, ...]: ...


class TeacherChunks(Protocol):
    """Read-only logits."""

    def load(self, chunk: slice) -> None: ...

    def block(self, rows: slice) -> Tensor | SparseLogits: ...


class FactoredChunks:
    """Multiplies the factors into one buffer, which is reused for each chunk and for its gradient.

    Matrix products run in ``precision``, the loss in ``working``. Gradients of weight and bias accumulate in float32 if
    the products are in half precision.
    """

    def __init__(
        self, logits: FactoredLogits, longest: int, precision: torch.dtype, working: torch.dtype, *, learns: bool
    ) -> None:
        self.logits = logits
        self.inputs = logits.tensors
        self._hidden = _rows(logits.hidden.detach()).to(precision)
        self._weight = logits.weight.detach().to(precision)
        self._bias = None if logits.bias is None else logits.bias.detach().to(precision)
        self._working = working
        self._space = self._hidden.new_empty(longest, logits.classes)
        self._buffer = self._space
        self._piece = slice(0, 0)
        self._slope: Tensor | None = None
        self._learns = learns
        wide = torch.float32 if is_half(self._hidden) else precision
        takes = [learns and tensor.requires_grad for tensor in logits.tensors]
        self._of_hidden = torch.empty_like(self._hidden) if takes[0] else None
        self._of_weight = self._weight.new_zeros(self._weight.shape, dtype=wide) if takes[1] else None
        self._of_bias = self._weight.new_zeros(logits.classes, dtype=wide) if takes[2:] == [True] else None

    @property
    def gradients(self) -> tuple[Tensor | None, ...]:
        scale = self.logits.scale
        found = (self._of_hidden, self._of_weight, self._of_bias)[: len(self.inputs)]
        if scale is not None:  # once, instead of in each chunk
            found = tuple(None if gradient is None else gradient * scale for gradient in found)
        return tuple(None if g is None else g.view(t.shape) for g, t in zip(found, self.inputs, strict=True))

    def load(self, chunk: slice) -> None:
        self._piece = chunk
        part = self._hidden[chunk]
        self._buffer = self._space[: len(part)]
        if self._bias is None:
            torch.mm(part, self._weight.t(), out=self._buffer)
        else:
            torch.addmm(self._bias, part, self._weight.t(), out=self._buffer)

    def block(self, rows: slice) -> Tensor:
        found = self._buffer[rows].to(self._working)
        scale, cap = self.logits.scale, self.logits.softcap
        if scale is not None:
            found.mul_(scale)
        if cap is not None:
            found.div_(cap).tanh_()
            if self._learns:
                self._slope = found.square().neg_().add_(1.0)
            found.mul_(cap)
        return found

    def put(self, rows: slice, gradient: Tensor) -> None:
        if self._slope is not None:
            gradient, self._slope = self._slope.mul_(gradient), None
        place = self._buffer[rows]
        if place.data_ptr() != gradient.data_ptr():
            place.copy_(gradient)

    def learn(self) -> None:
        if self._of_hidden is not None:
            torch.mm(self._buffer, self._weight, out=self._of_hidden[self._piece])
        if self._of_weight is not None:
            _add_product(self._of_weight, self._buffer, self._hidden[self._piece])
        if self._of_bias is not None:
            self._of_bias += self._buffer.sum(dim=0, dtype=self._of_bias.dtype)


class DenseChunks:
    """Logits given as a tensor. Their gradient is another tensor of the same size, for the model's backward pass."""

    def __init__(self, logits: Tensor, working: torch.dtype, *, learns: bool) -> None:
        self.inputs: tuple[Tensor, ...] = (logits,)
        self._logits = _rows(logits.detach())
        self._working = working
        self._shape = logits.shape
        self._gradient = torch.empty_like(self._logits) if learns and logits.requires_grad else None
        self._start = 0

    @property
    def gradients(self) -> tuple[Tensor | None, ...]:
        return (None if self._gradient is None else self._gradient.view(self._shape),)

    def load(self, chunk: slice) -> None:
        self._start = chunk.start

    def block(self, rows: slice) -> Tensor:
        return self._logits[self._at(rows)].to(self._working, copy=True)

    def put(self, rows: slice, gradient: Tensor) -> None:
        if self._gradient is not None:
            self._gradient[self._at(rows)].copy_(gradient)

    def learn(self) -> None:
        pass

    def _at(self, rows: slice) -> slice:
        return slice(self._start + rows.start, self._start + rows.stop)


class SparseChunks:
    """Teacher logits known at a few classes."""

    def __init__(self, logits: SparseLogits) -> None:
        self._logits = logits
        self._places = torch.arange(logits.shape[:-1].numel(), device=logits.device)
        self._start = 0

    def load(self, chunk: slice) -> None:
        self._start = chunk.start

    def block(self, rows: slice) -> SparseLogits:
        return self._logits.at(self._places[self._start + rows.start : self._start + rows.stop])


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _add_product(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """Add ``gradientᵀ @ hidden`` to ``total``; in half precision one panel of classes at a time, each rounded once."""
    if total.dtype is gradient.dtype:
        total.addmm_(gradient.t(), hidden)
        return
    for start in range(0, len(total), _PANEL):
        panel = slice(start, start + _PANEL)
        total[panel] += gradient[:, panel].t() @ hidden
