"""The process group, device and precision of a run, from accelerate."""

from __future__ import annotations

import atexit
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState, is_initialized
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, DynamoBackend
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from kdplug.engine.multi_task import MultiTaskLoader
from kdplug.errors import KdplugError, RunError

T = TypeVar("T")

_ONE_REPLICA_EACH = frozenset(
    kind for kind in DistributedType if kind is DistributedType.NO or kind.value.startswith("MULTI_")
)


@contextmanager
def process(device: str, precision: str | None) -> Iterator[Accelerator]:
    """An ``Accelerator`` for the length of a run; accelerate's global state is as before afterwards.

    ``device`` is ``"auto"``, ``"cpu"``, ``"mps"``, ``"cuda"`` or ``"cuda:1"``. ``precision`` is ``"fp32"``, ``"bf16"``, ``"fp16"``,
    or ``None`` for what ``accelerate launch`` was told.

    Raises: ``RunError`` where accelerate's processes, device or precision are not those asked for.
    """
    with _state_restored():
        accelerator = _make(device, precision)
        _check(accelerator, device)
        if accelerator.num_processes > 1:
            _leave_group_at_exit()
        yield accelerator


def _make(device: str, precision: str | None) -> Accelerator:
    cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    if ":" in device and torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(device.partition(":")[2]))
    try:
        return Accelerator(
            cpu=cpu,
            mixed_precision="no" if precision == "fp32" else precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:
        raise RunError(f"accelerate cannot give this process what the run asks for: {error}") from error


@contextmanager
def _state_restored() -> Iterator[None]:
    """Take accelerate's global state back to what was there, so that the next run may ask for something else.

    A process group stays: making one anew is neither cheap nor safe.
    """
    had_accelerator = is_initialized()
    had_process = bool(PartialState._shared_state)  # noqa: SLF001  accelerate has no public way to ask, nor to go back
    try:
        yield
    finally:
        if not had_accelerator:
            GradientState._reset_state()  # noqa: SLF001
            AcceleratorState._reset_state()  # noqa: SLF001
        if not had_process and not torch.distributed.is_initialized():
            PartialState._reset_state()  # noqa: SLF001


def on_main(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """What ``function`` returns in the main process, on every process; it has to be plain data or a path.

    Raises: on every process the error of ours that ``function`` raises in the main one; ``RunError`` on the others for any other.
    """
    if accelerator.num_processes == 1:
        return function()
    outcome: list[Any] = [None, None]  # the result, or the error
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except Exception as error:
            failure = error
            outcome[1] = error if isinstance(error, KdplugError) else RunError(f"the main process failed: {error}")
    torch.distributed.broadcast_object_list(outcome, src=0)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        raise outcome[1]
    found: T = outcome[0]
    return found


def shard(accelerator: Accelerator, loader: Iterable[Any]) -> Iterable[Any]:
    """This process's share of ``loader``; in a single process the loader itself, untouched.

    Of several tasks each loader is divided. A loader that is divided already (prepared by accelerate, or with a
    ``DistributedSampler``) stays as it is. Where the batches of a pass can be shared out evenly, each example is seen once, and
    the last batch may be short; otherwise the last step repeats examples of the first, which is warned of.

    Raises: ``RunError`` for a loader that is not a ``DataLoader``, since nothing else says how to divide it.
    """
    if isinstance(loader, MultiTaskLoader):
        return loader.sharded(lambda one: shard(accelerator, one))
    if accelerator.num_processes == 1 or getattr(loader, "_is_accelerate_prepared", False):
        return loader
    if not isinstance(loader, DataLoader):
        raise RunError(
            f"{accelerator.num_processes} processes cannot share a {type(loader).__name__}; pass a torch DataLoader"
        )
    if isinstance(loader.sampler, DistributedSampler):
        return loader
    with _filling_up(accelerator, needed=not _is_even(loader, accelerator)):
        prepared: Iterable[Any] = accelerator.prepare_data_loader(loader, device_placement=False)
    return prepared


def _is_even(loader: DataLoader[Any], accelerator: Accelerator) -> bool:
    """Whether each process gets as many batches of a pass as any other. Where that is not known they are filled up."""
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return False
    try:
        batches = len(loader.batch_sampler)  # type: ignore[arg-type]
    except TypeError:
        return False
    if batches % accelerator.num_processes and not loader.drop_last and accelerator.is_main_process:
        warnings.warn(
            f"{accelerator.num_processes} processes cannot share {batches} batches evenly: the last step of each pass repeats "
            "examples from its beginning. A batch size that gives a multiple, or drop_last=True, avoids that",
            stacklevel=2,
        )
    return bool(batches % accelerator.num_processes == 0)


@contextmanager
def _filling_up(accelerator: Accelerator, *, needed: bool) -> Iterator[None]:
    """Whether accelerate, inside the block, fills the last batches of a pass up with examples from its beginning."""
    config = accelerator.dataloader_config
    before, config.even_batches = config.even_batches, needed
    try:
        yield
    finally:
        config.even_batches = before


def _check(accelerator: Accelerator, device: str) -> None:
    kind = accelerator.distributed_type
    if kind is DistributedType.FSDP:
        _check_fsdp(accelerator)
    elif kind not in _ONE_REPLICA_EACH:
        raise RunError(f"accelerate is set to {kind.value}; runs work on a single process, with DDP or with FSDP2")
    elif os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise RunError(f"FSDP was asked for, but accelerate gives {kind.value}: it shards on accelerators only")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise RunError(
            f"{launched} processes were launched, but accelerate runs {accelerator.num_processes}: each would train alone"
        )
    if accelerator.mixed_precision == "fp16" and not accelerator.native_amp:
        raise RunError(f"precision fp16 does nothing on {accelerator.device.type}; write precision: bf16")
    wanted = device.partition(":")[0]
    if wanted not in ("auto", accelerator.device.type):
        raise RunError(f"device {device!r} was asked for, but accelerate gives {accelerator.device.type!r}")


def _check_fsdp(accelerator: Accelerator) -> None:
    if not accelerator.is_fsdp2:
        raise RunError("accelerate is set to FSDP1, which torch is retiring; write fsdp_version: 2 in its config")
    parallel = accelerator.parallelism_config
    if parallel is not None and (parallel.tp_enabled or parallel.cp_enabled):
        raise RunError("accelerate is set to tensor or context parallelism; runs work with FSDP2 over the data alone")
    if accelerator.state.fsdp_plugin.activation_checkpointing:
        raise RunError(
            "the FSDP config asks for activation checkpointing, which would wrap the student as a whole; switch it off there "
            "and on in the model (transformers: student.gradient_checkpointing_enable())"
        )
    if accelerator.state.dynamo_plugin.backend is not DynamoBackend.NO:
        raise RunError("accelerate is set to compile what FSDP shards; compile the student's blocks yourself instead")


_DRAIN_SECONDS = 0.2

_registered: list[bool] = []


def _leave_group_at_exit() -> None:
    """Leave the process group when the interpreter ends: gloo jobs that do not sometimes abort then, or never end."""
    if not _registered:
        _registered.append(True)
        atexit.register(_leave_group)


def _leave_group() -> None:
    PartialState().destroy_process_group()
    # A model wrapped by DDP keeps gloo's threads. One that has a tensor of the last exchange to let go of asks for the
    # interpreter: taken down, it ends the process; held by whoever destroys the model, both wait for ever. So let it, now.
    time.sleep(_DRAIN_SECONDS)
