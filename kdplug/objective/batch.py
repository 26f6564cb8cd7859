"""Inputs of one call of the objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.outputs import Outputs
from kdplug.errors import OutputsError, ShapeError
from kdplug.objective.numerics import frozen, is_autocast_on
from kdplug.objective.report import TermValue

if TYPE_CHECKING:
    from kdplug.contracts.outputs import Logits


def seed_of(*parts: int | str) -> int:
    """Derive an int64 seed from ``parts`` by hashing: different parts give unrelated seeds."""
    name = " ".join(map(str, parts))
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) >> 1


class Draws:
    """Random seeds for one batch. ``micro_batch`` numbers the batches of one step, across all processes.

    Two batches that differ in either number share no seed, and the same batch of the same step always gets the same
    seeds, so checkpoints need no extra state.
    """

    __slots__ = ("_place", "micro_batch", "step")

    def __init__(self, step: int = 0, micro_batch: int = 0) -> None:
        self.step = step
        self.micro_batch = micro_batch
        self._place = 0

    def next(self) -> int:
        """Return the next seed, in the range of int64."""
        found = seed_of(self.step, self.micro_batch, self._place)
        self._place += 1
        return found


def check_tensors(outputs: Outputs, owner: str) -> None:
    """Check the types of one side's tensors. ``owner`` is ``student`` or a teacher.

    Raises: ``OutputsError`` for logits or features that are not dense floating-point tensors of at least 16 bits, for
    extras that are neither that nor dense integers or booleans, and for a mask or labels that are sparse, nested or
    complex.
    """
    for key in ("logits", "hidden", "attention"):
        for place, value in enumerate(getattr(outputs, key) or ()):
            tensors = value.tensors if isinstance(value, FactoredLogits) else (value,)
            for tensor in tensors:
                if isinstance(tensor, Tensor) and (_is_odd(tensor) or not _is_float(tensor)):
                    raise _odd(tensor, f"{owner}.{key}.{place}")
    for name, tensor in (outputs.extras or {}).items():
        if _is_odd(tensor) or not (_is_float(tensor) or _is_whole(tensor)):
            raise _odd(tensor, f"{owner}.extras.{name}")
    for key in ("logits_mask", "inputs_mask", "labels"):
        values = getattr(outputs, key)
        for tensor in (values,) if isinstance(values, Tensor) else values or ():
            if _is_odd(tensor) or tensor.is_complex():
                raise OutputsError(
                    f"must be a dense, real tensor, got {_kind(tensor)}. {_conversion(tensor)}", field=f"{owner}.{key}"
                )


def _is_odd(tensor: Tensor) -> bool:
    return tensor.layout is not torch.strided or tensor.is_nested


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize > 1


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized)


def _kind(tensor: Tensor) -> str:
    return f"a nested tensor of {tensor.dtype}" if tensor.is_nested else f"{tensor.layout}, {tensor.dtype}"


def _odd(tensor: Tensor, field: str) -> OutputsError:
    return OutputsError(
        f"must be a dense floating-point tensor of at least 16 bits, got {_kind(tensor)}. {_conversion(tensor)}",
        field=field,
    )


def _conversion(tensor: Tensor) -> str:
    """Return how to convert a tensor to a dense, real, floating-point one."""
    if tensor.is_complex():
        return "Return its real part, or another real tensor, from the adaptor"
    if tensor.is_nested:
        call = "to_padded_tensor(0), and mask the padding"
    elif tensor.is_quantized:
        call = "dequantize()"
    elif tensor.layout is not torch.strided:
        call = "to_dense()"
    else:
        call = "float(); a float8 tensor must then be multiplied by its scale"
    return f"Convert the tensor in the adaptor with .{call}"


def wrong_values(mask: Tensor) -> Tensor:
    """Return bool, ``True`` where ``mask`` holds a value other than 0 and 1, such as ``nan``."""
    return mask != mask.bool()


def check_mask(mask: Tensor, owner: str, *, field: str = "") -> None:
    """Check the values of a mask that is not bool, which waits for its device. ``owner`` or ``field`` names it.

    Raises: ``OutputsError`` if it holds a value other than 0 and 1.
    """
    if mask.dtype is not torch.bool and wrong_values(mask).any():
        raise no_mask(mask, owner, field=field)


def doubt(mask: Tensor, owner: str) -> Tensor | None:
    """Run ``check_mask`` without waiting for an accelerator: return a device scalar that is true if the mask is wrong.

    Return ``None`` if nothing remains to be checked. Pass the scalar to ``nan_if``. Compiled code gets such a scalar on
    a CPU too.
    """
    if mask.dtype is torch.bool:
        return None
    if not mask.is_cpu or torch.compiler.is_compiling():
        return wrong_values(mask).any()
    check_mask(mask, owner)
    return None


def nan_if(value: Tensor, doubts: Sequence[Tensor]) -> Tensor:
    """Return ``value``, or ``nan`` with a gradient of ``nan`` if a doubt is true."""
    if not doubts:
        return value
    return value * torch.ones_like(value).masked_fill(torch.stack(list(doubts)).any(), torch.nan)


def no_mask(mask: Tensor, owner: str, *, field: str = "") -> OutputsError:
    """Return the error for a mask with values other than 0 and 1, including how to convert it."""
    wrong = mask.detach()[wrong_values(mask)]
    if (wrong < 0).all():
        cut = ("[:, 0, 0]" if mask.shape[2] == 1 else "[:, 0, -1]") if mask.dim() == 4 else ""
        way = (
            "Negative values suggest an extended attention mask, which is added to attention scores and is 0 at tokens to "
            f"use. Return the tokenizer's attention_mask of shape (batch, length), or the converted mask (mask{cut} == 0)"
        )
    else:
        way = "If every value other than 0 marks an item to use, return (mask != 0)"
    message = f"must contain only 0 and 1, or be bool, got {wrong[0].item():g}. {way}"
    return OutputsError(f"{owner} {message}" if owner else message, field=field)


def extended_hint(*masks: Tensor | None) -> str:
    """Return a hint for shape errors if a mask has four axes, as a model's extended mask has, else an empty string."""
    found = next((mask for mask in masks if mask is not None and mask.dim() == 4), None)
    if found is None:
        return ""
    return (
        f". A mask {list(found.shape)} is the model's extended attention mask: return the tokenizer's attention_mask "
        "of shape (batch, length)"
    )


def places_that_count(mask: Tensor, *, field: str) -> Tensor:
    """Return the flat indices where the mask is 1.

    Finding the indices waits for the device. To detect values other than 0 and 1 in the same wait, more indices than
    items are appended in that case.

    Raises: ``OutputsError`` if it holds a value other than 0 and 1.
    """
    items = mask.reshape(-1)
    counts = items.bool()
    if items.dtype is not torch.bool:
        counts = torch.cat([counts, (items != counts).any().expand(len(items) + 1)])
    places = counts.nonzero().squeeze(1)
    if len(places) > len(items):
        raise no_mask(mask, "", field=field)
    return places


def gathered(logits: Logits) -> Logits:
    """Gather the head's weight and bias on each process if FSDP shards them.

    The gradient is scattered back to the shards as FSDP does it: averaged over the processes.
    """
    if not isinstance(logits, FactoredLogits):
        return logits
    weight, bias = _whole(logits.weight), None if logits.bias is None else _whole(logits.bias)
    return logits if weight is logits.weight and bias is logits.bias else replace(logits, weight=weight, bias=bias)


def _whole(tensor: Tensor) -> Tensor:
    if not hasattr(tensor, "full_tensor"):  # only DTensor has it; cheaper than importing the class
        return tensor
    from torch.distributed.tensor import Partial

    sharded = cast("Any", tensor)
    mesh = sharded.device_mesh
    found = cast("Tensor", sharded.full_tensor(grad_placements=[Partial()] * mesh.ndim))
    if found.requires_grad:
        found.register_hook(lambda gradient: gradient / mesh.size())  # type: ignore[no-untyped-call]
    return found


class Batch:
    """All models' outputs and the progress of the run. Each input mask is converted once, on first use.

    ``draws`` supplies seeds to losses that use random numbers. ``teacher`` is the first of ``teachers``; ``of_teacher``
    returns the same batch with another teacher as ``teacher``. With ``looks``, mask values are checked on every device,
    which waits for it; otherwise they are checked on CPU only, and elsewhere ``certain`` turns a term that used an
    invalid mask into ``nan``.
    """

    __slots__ = (
        "_autocast",
        "_doubts",
        "_mask",
        "_masks",
        "_views",
        "draws",
        "epoch",
        "example_ids",
        "looks",
        "progress",
        "step",
        "student",
        "teacher",
        "teachers",
        "total_steps",
    )

    def __init__(
        self,
        student: Outputs,
        teachers: tuple[Outputs, ...],
        progress: float,
        step: int,
        total_steps: int,
        *,
        epoch: int = 0,
        example_ids: Tensor | None = None,
        draws: Draws | None = None,
        looks: bool = True,
    ) -> None:
        self.student = student
        self.teacher = teachers[0]
        self.teachers = teachers
        self.progress = progress
        self.step = step
        self.total_steps = total_steps
        self.epoch = epoch
        self.example_ids = example_ids
        self.draws = Draws(step) if draws is None else draws
        self.looks = looks
        self._mask: Tensor | None = None
        self._masks: dict[str, Tensor | None] = {}
        self._doubts: list[Tensor] = []
        self._autocast: bool | None = None
        self._views: dict[int, Batch] = {}

    def of_teacher(self, place: int) -> Batch:
        """Return the batch for a term that reads one of the teachers, or ``STUDENT``; the same object each time."""
        if place == 0:
            return self
        if place not in self._views:
            own = (self.student.detached() if place < 0 else self.teachers[place],)
            self._views[place] = Batch(
                self.student,
                own,
                self.progress,
                self.step,
                self.total_steps,
                epoch=self.epoch,
                example_ids=self.example_ids,
                draws=self.draws,
                looks=self.looks,
            )
        return self._views[place]

    def ids_for(self, owner: str) -> Tensor:
        """Return the ids of the examples for the loss ``owner``.

        Raises: ``OutputsError`` if the batch has none.
        """
        if self.example_ids is None:
            raise OutputsError(
                f"{owner} requests example_ids, but the batch has none. Add a key 'example_ids' to the batch, with one "
                "integer per example, its index in the data; in your own loop, pass example_ids= to the objective",
                field="loss",
            )
        return self.example_ids

    def ids_of(self, compared: Logits, owner: str, what: str) -> Tensor:
        """Return the ids of the examples along the first axis of ``compared``, on its device.

        ``owner`` is the loss that requests them, ``what`` the name of ``compared`` for errors.

        Raises: ``OutputsError`` if the batch has none; ``ShapeError`` if there is not one for each row of the first axis.
        """
        ids = self.ids_for(owner)
        if not compared.shape or compared.shape[0] != len(ids):
            raise ShapeError(
                f"{owner} requests example_ids, of which the batch has {len(ids)}, but the student's {what} are "
                f"{list(compared.shape)}. The first axis must be the examples of the batch, in the same order",
                field="loss",
            )
        return ids.to(compared.device, non_blocking=True)

    def autocast(self, tensor: Logits) -> bool:
        """Return whether autocast is on for the device of ``tensor``, a student tensor. Cached after the first call."""
        if self._autocast is None:
            self._autocast = is_autocast_on(tensor.device.type)
        return self._autocast

    @property
    def match_mask(self) -> Tensor | None:
        """Bool, ``True`` where an input counts for both models; ``None`` if neither adaptor returned ``inputs_mask``.

        Raises: ``ShapeError`` if the two masks differ in shape; ``OutputsError`` for an invalid mask.
        """
        if self._mask is None:
            self._mask = self._both()
        return self._mask

    @property
    def student_mask(self) -> Tensor | None:
        """Bool, ``True`` where an input counts for the student. Raises: ``OutputsError`` for an invalid mask."""
        return self._read("student", self.student.inputs_mask)

    @property
    def teacher_mask(self) -> Tensor | None:
        """Bool, ``True`` where an input counts for the teacher. Raises: ``OutputsError`` for an invalid mask."""
        return self._read("teacher", self.teacher.inputs_mask)

    def certain(self, value: TermValue) -> TermValue:
        """Replace a term's value by ``nan`` if a mask that it may have used held values other than 0 and 1.

        Masks that were already checked change nothing.
        """
        return TermValue(nan_if(value.total, self._doubts), value.count, value.weight) if self._doubts else value

    @property
    def match_labels(self) -> Tensor | None:
        """Return the student's labels, for a match that requests them.

        Raises: ``OutputsError`` if there are several, since a match belongs to no head.
        """
        labels = self.student.labels
        if labels is None:
            return None
        if len(labels) > 1:
            raise OutputsError(
                f"the loss requests labels, but the student returned labels of {len(labels)} heads, and a match belongs to "
                "no head. Use a loss that does not request labels; or write a loss that also requests logits as one of "
                "the terms, where head_S selects a head"
            )
        return labels[0]

    def _both(self) -> Tensor | None:
        student, teacher = self.student.inputs_mask, self.teacher.inputs_mask
        if teacher is None or student is teacher:
            return self.student_mask
        if student is None:
            return self.teacher_mask
        if student.shape != teacher.shape:
            raise ShapeError(
                f"the student's inputs_mask {list(student.shape)} and the teacher's {list(teacher.shape)} differ in "
                "shape. A match compares position by position, so both models need the same inputs, or adaptors that "
                f"return masks and features of the same positions{extended_hint(student, teacher)}"
            )
        mine, theirs = self.student_mask, self.teacher_mask
        assert mine is not None
        assert theirs is not None
        return mine & theirs

    def _read(self, side: str, mask: Tensor | None) -> Tensor | None:
        if side not in self._masks:
            self._masks[side] = None if mask is None else self._as_bool(side, mask)
        return self._masks[side]

    def _as_bool(self, side: str, mask: Tensor) -> Tensor:
        owner = f"the {side}'s inputs_mask"
        if self.looks and not torch.compiler.is_compiling():
            check_mask(mask, owner)
        elif (found := doubt(mask, owner)) is not None:
            self._doubts.append(found)
        return frozen(mask) if mask.dtype is torch.bool else mask != 0
