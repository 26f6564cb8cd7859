"""The process group, device and precision of a run, from accelerate."""

from __future__ import annotations

import atexit
import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState, is_initialized
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, DynamoBackend
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.nn.parallel import DistributedDataParallel
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
    """Yield an ``Accelerator`` for one run; accelerate's global state is restored afterwards.

    ``device`` is ``"auto"``, ``"cpu"``, ``"mps"``, ``"cuda"`` or ``"cuda:1"``. ``precision`` is ``"fp32"``, ``"bf16"``,
    ``"fp16"``, or ``None`` for the setting of ``accelerate launch``.

    Raises: ``RunError`` if accelerate's processes, device or precision are not the requested ones; and, if a process
    fails in the block, on every other process, with the error of the one that failed.
    """
    with _state_restored(), ExitStack() as stack:
        accelerator = _make(device, precision)
        _check(accelerator, device)
        if accelerator.num_processes > 1:
            _leave_group_at_exit()
            stack.enter_context(_cause_shared(accelerator))
        yield accelerator


def check_device(device: str) -> None:
    """Raise ``RunError`` if torch cannot use ``device`` on this machine."""
    kind, _, index = device.partition(":")
    if kind == "cuda":
        is_built, is_there = torch.version.cuda is not None or torch.version.hip is not None, torch.cuda.is_available()
    elif kind == "mps":
        is_built, is_there = torch.backends.mps.is_built(), torch.backends.mps.is_available()
    else:
        return
    if not is_there:
        cause = "torch finds none on this machine" if is_built else f"torch {torch.__version__} is built without it"
    elif index and int(index) >= (count := torch.cuda.device_count()):
        cause = f"torch finds {count}, numbered from 0"
    else:
        return
    raise RunError(f"there is no device {device!r}: {cause}. Use device: auto, or cpu", field="device")


def _make(device: str, precision: str | None) -> Accelerator:
    check_device(device)
    cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    if ":" in device and torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(device.partition(":")[2]))
    try:
        return Accelerator(
            cpu=cpu,
            mixed_precision="no" if precision == "fp32" else precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except (ValueError, ImportError) as error:
        raise RunError(f"accelerate cannot set up the device or precision of this run: {error}") from error


@contextmanager
def _state_restored() -> Iterator[None]:
    """Restore accelerate's global state after the block, so that the next run may use other settings.

    A process group is kept: creating another is neither cheap nor safe.
    """
    had_accelerator = is_initialized()
    had_process = bool(PartialState._shared_state)  # noqa: SLF001  accelerate has no public way to read or reset it
    try:
        yield
    finally:
        if not had_accelerator:
            GradientState._reset_state()  # noqa: SLF001
            AcceleratorState._reset_state()  # noqa: SLF001
        if not had_process and not torch.distributed.is_initialized():
            PartialState._reset_state()  # noqa: SLF001


_FAILED = "failed"
_ENDED = "ended"
_SECONDS_TO_END = 20

_runs = itertools.count(1)
_stores: list[PrefixStore] = []


@contextmanager
def _cause_shared(accelerator: Accelerator) -> Iterator[None]:
    """Inside the block, publish an error of this process, or replace a lost connection by the other's error.

    A connection is lost when the other process exits, so that process has already published its error.
    """
    _stores.append(PrefixStore(f"kdplug/{next(_runs)}", torch.distributed.distributed_c10d._get_default_store()))  # noqa: SLF001  the only store that all processes already share
    try:
        yield
    except Exception as error:
        if _is_lost_connection(error):
            raise RunError(_cause(_stores[-1], accelerator)) from error
        _publish(_stores[-1], f"rank {accelerator.process_index} failed with {type(error).__name__}: {error}")
        raise
    finally:
        _stores.pop()


def _is_lost_connection(error: Exception) -> bool:
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    )


def _publish(store: PrefixStore, cause: str) -> None:
    try:
        store.set(_FAILED, cause)
    except RuntimeError:  # the process that holds the store has ended
        return


def _cause(store: PrefixStore, accelerator: Accelerator) -> str:
    """Return the published error of another process, or a message that there is none."""
    try:
        if store.check([_FAILED]):
            return store.get(_FAILED).decode()
    except RuntimeError:  # the process that holds the store has ended
        pass
    others = [str(rank) for rank in range(accelerator.num_processes) if rank != accelerator.process_index]
    one = f"rank {others[0]}" if len(others) == 1 else f"one of ranks {', '.join(others)}"
    return (
        f"the connection to {one} was lost, and that process reported no error: it was probably killed (out of memory?) "
        "or hangs. See its output. Resume from the last checkpoint with resume='auto' (--resume)"
    )


def check_all_ended(accelerator: Accelerator, step: int, total_steps: int) -> None:
    """Check that all processes have run out of batches after ``step``, if this one has before ``total_steps``.

    Raises: ``RunError`` if another one has more batches, and so would wait for this one.
    """
    if accelerator.num_processes == 1:
        return
    store = _stores[-1]
    store.set(f"{_ENDED}/{accelerator.process_index}", str(step))
    try:
        store.wait(
            [f"{_ENDED}/{rank}" for rank in range(accelerator.num_processes)], timedelta(seconds=_SECONDS_TO_END)
        )
    except RuntimeError as error:
        raise RunError(
            f"rank {accelerator.process_index} has no batch left after step {step} of {total_steps}, but another process "
            "is still training: each process must get the same number of batches. Does the dataset's length differ from "
            "the number of examples that it yields?"
        ) from error


def on_main(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Run ``function`` in the main process and return its result on every process; it must be plain data or a path.

    Raises: on every process the ``KdplugError`` that ``function`` raises in the main one; for any other error,
    ``RunError`` on the other processes.
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


def first_of_all(accelerator: Accelerator, text: str | None) -> str | None:
    """Return the text of the first process that has one. Every process must call it at the same step."""
    if accelerator.num_processes == 1:
        return text
    has_text = torch.tensor([text is not None], dtype=torch.int32, device=accelerator.device)
    if not bool(accelerator.gather(has_text).any()):
        return None
    every: list[str | None] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(every, text)
    return next(one for one in every if one is not None)


def keep_buffers_apart(wrapped: nn.Module, objective: nn.Module) -> None:
    """Make DDP around ``wrapped`` leave the buffers of ``objective`` alone: each process has its own memory banks.

    ``objective`` is part of ``wrapped``. Call it before DDP wraps the module, and ``equalize_buffers`` for a common start.
    """
    own = {id(buffer) for buffer in objective.buffers()}
    names = [name for name, buffer in wrapped.named_buffers() if id(buffer) in own]
    ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model  # noqa: SLF001  torch's only way
    ignore(wrapped, names)


def equalize_buffers(objective: nn.Module) -> None:
    """Give each process the main process's buffers of ``objective``."""
    for buffer in objective.buffers():
        broadcast(buffer)


def broadcast(tensor: Tensor) -> None:
    """Broadcast the main process's values as bytes: not every backend can send every dtype."""
    if not tensor.numel():
        return
    held = tensor.detach().contiguous()
    torch.distributed.broadcast(held.reshape(-1).view(torch.uint8), src=0)
    with torch.no_grad():
        tensor.copy_(held)


def shard(accelerator: Accelerator, loader: Iterable[Any]) -> Iterable[Any]:
    """Return this process's share of ``loader``; in a single process the loader itself, unchanged.

    With several tasks, each loader is divided. A loader that is already divided (prepared by accelerate, or with a
    ``DistributedSampler``) is left as it is. If the batches of a pass divide evenly, each example is seen once and the
    last batch may be smaller; otherwise the last step repeats examples of the first, with a warning.

    Raises: ``RunError`` for a loader that is not a ``DataLoader``, since there is no other way to divide it.
    """
    if isinstance(loader, MultiTaskLoader):
        return loader.sharded(lambda one: shard(accelerator, one))
    if accelerator.num_processes == 1 or getattr(loader, "_is_accelerate_prepared", False):
        return loader
    if not isinstance(loader, DataLoader):
        raise RunError(
            f"a {type(loader).__name__} cannot be divided among {accelerator.num_processes} processes; pass a torch "
            "DataLoader"
        )
    if isinstance(loader.sampler, DistributedSampler):
        return loader
    with _filling_up(accelerator, needed=not _is_even(loader, accelerator)):
        prepared: Iterable[Any] = accelerator.prepare_data_loader(loader, device_placement=False)
    return prepared


def _is_even(loader: DataLoader[Any], accelerator: Accelerator) -> bool:
    """Return whether each process gets the same number of batches in a pass. If unknown, batches are filled up."""
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return False
    try:
        batches = len(loader.batch_sampler)  # type: ignore[arg-type]
    except TypeError:
        return False
    if batches % accelerator.num_processes and not loader.drop_last and accelerator.is_main_process:
        warnings.warn(
            f"{accelerator.num_processes} processes cannot divide {batches} batches evenly: the last step of each epoch "
            "repeats examples from its start. To avoid that, choose a batch size for which the number of batches "
            "is a multiple of the number of processes, or set drop_last=True",
            stacklevel=2,
        )
    return bool(batches % accelerator.num_processes == 0)


@contextmanager
def _filling_up(accelerator: Accelerator, *, needed: bool) -> Iterator[None]:
    """Inside the block, set whether accelerate fills up the last batches of a pass with examples from its beginning."""
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
        raise RunError(
            f"accelerate is configured for {kind.value}, but runs support only a single process, DDP and FSDP2. Choose one "
            "of these with accelerate config"
        )
    elif os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise RunError(
            f"FSDP was requested, but accelerate ignores it on {accelerator.device.type} (distributed type {kind.value}). "
            "Start the run on GPUs or other accelerators with accelerate launch, or remove FSDP from accelerate's config"
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise RunError(
            f"{launched} processes were launched, but accelerate uses {accelerator.num_processes}: each would train "
            "alone. Start them with torchrun or accelerate launch, or unset WORLD_SIZE for a single process"
        )
    if accelerator.mixed_precision == "fp16" and not accelerator.native_amp:
        raise RunError(f"precision fp16 has no effect on {accelerator.device.type}; set precision: bf16")
    wanted = device.partition(":")[0]
    if wanted not in ("auto", accelerator.device.type):
        raise RunError(
            f"device {device!r} was requested, but accelerate uses {accelerator.device.type!r}. Set device: auto"
        )


def _check_fsdp(accelerator: Accelerator) -> None:
    if not accelerator.is_fsdp2:
        raise RunError(
            "accelerate is configured for FSDP1, which torch has deprecated. Set fsdp_version: 2 in accelerate's config"
        )
    parallel = accelerator.parallelism_config
    if parallel is not None and (parallel.tp_enabled or parallel.cp_enabled or parallel.sp_enabled):
        raise RunError(
            "accelerate is configured for tensor, context or sequence parallelism, but with FSDP2, runs support only data "
            "parallelism. Set tp_size, cp_size and sp_size to 1 in accelerate's parallelism_config"
        )
    if accelerator.state.fsdp_plugin.activation_checkpointing:
        raise RunError(
            "the FSDP config enables activation checkpointing, which would wrap the whole student. Disable activation "
            "checkpointing there, and enable it in the model (transformers: student.gradient_checkpointing_enable())"
        )
    if accelerator.state.dynamo_plugin.backend is not DynamoBackend.NO:
        raise RunError(
            "accelerate is configured with a dynamo_backend, which would compile the FSDP-sharded student as a whole. Set "
            "dynamo_backend to 'no', and call torch.compile on the student's blocks if you want compilation"
        )


_DRAIN_SECONDS = 0.2

_registered: list[bool] = []


def _leave_group_at_exit() -> None:
    """Destroy the process group when the interpreter exits: otherwise gloo jobs sometimes abort or hang at exit."""
    if not _registered:
        _registered.append(True)
        atexit.register(_leave_group)


def _leave_group() -> None:
    PartialState().destroy_process_group()
    # A model wrapped by DDP keeps gloo's threads alive. A thread that releases a tensor of the last exchange needs the
    # GIL: after finalization that ends the process; while the model's destructor holds the GIL, both deadlock. Let it
    # run now.
    time.sleep(_DRAIN_SECONDS)
