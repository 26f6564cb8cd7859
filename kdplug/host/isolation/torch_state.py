"""State of torch, numpy and ``random`` that affects the results of a run. Nothing here imports them."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from kdplug.host.isolation.process_state import UNKNOWN, Part, Table

# ruff: noqa: SLF001  torch has no public API for its mode stacks, its global hooks or the pending CUDA seeds


_AUTOCAST = {"cpu": "bfloat16", "cuda": "float16"}
"""Devices whose autocast state is saved, with their default dtype."""

_FLAGS: dict[str, Any] = {
    "backends.cudnn.enabled": True,
    "backends.cudnn.benchmark": False,
    "backends.cudnn.deterministic": False,
    "backends.cudnn.allow_tf32": True,
    "backends.fp32_precision": UNKNOWN,
    "backends.cuda.matmul.fp32_precision": UNKNOWN,
    "backends.cudnn.conv.fp32_precision": UNKNOWN,
    "backends.cudnn.rnn.fp32_precision": UNKNOWN,
    "backends.mkldnn.matmul.fp32_precision": UNKNOWN,
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction": True,
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction": True,
}
"""Attributes of torch that select algorithms or precision, and their defaults without environment variables."""

_GUARDS: list[Any] = []
"""Inference modes entered to restore the mode; torch exits a mode when its object is deleted."""

_WORDS = 624
"""State size of the Mersenne Twister in words; all words are replaced after the last one is drawn."""

_BLOCKS = 8
"""Maximum number of blocks of words that an import may draw. Drawing more counts as seeding."""

_SMALLEST_NORMAL = sys.float_info.min


def _set_inference_mode(torch: Any, enabled: bool) -> None:
    guard = torch.inference_mode(enabled)
    guard.__enter__()
    _GUARDS.append(guard)


def _default_device(torch: Any) -> Any:
    """Return the device of ``torch.set_default_device``, or ``None`` if it was never called."""
    return getattr(getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None), "device", None)


def _leave_function_modes(torch: Any, depth: int) -> None:
    while torch._C._len_torch_function_stack() > depth:
        torch.overrides._pop_mode()


def _leave_dispatch_modes(torch: Any, depth: int) -> None:
    while torch._C._len_torch_dispatch_stack() > depth:
        torch.utils._python_dispatch._pop_mode()


def _deterministic(torch: Any) -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(torch: Any, value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _autocast_depth(torch: Any) -> int:
    depth: int = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth


def _autocast(torch: Any) -> tuple[Any, ...]:
    """Return the number of open blocks, the cache flag and each device's state. An open block keeps outdated casts."""
    devices = [(torch.is_autocast_enabled(one), str(torch.get_autocast_dtype(one)).split(".")[1]) for one in _AUTOCAST]
    return _autocast_depth(torch), torch.is_autocast_cache_enabled(), *devices


def _set_autocast(torch: Any, value: tuple[Any, ...]) -> None:
    depth, caches, *devices = value
    while _autocast_depth(torch) > depth:
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(caches)
    for device, (enabled, dtype) in zip(_AUTOCAST, devices, strict=True):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, getattr(torch, dtype))


def _set_attribute(path: str, torch: Any, value: Any) -> None:
    owner, _, name = path.rpartition(".")
    setattr(operator.attrgetter(owner)(torch), name, value)


def _global_hooks(torch: Any) -> dict[str, list[Any]]:
    """Return the keys of the hooks that torch calls for every module."""
    return {name: list(hooks) for name, hooks in _hooks_of(torch)}


def _remove_global_hooks(torch: Any, wanted: dict[str, list[Any]]) -> None:
    for name, hooks in _hooks_of(torch):
        for key in [key for key in hooks if key not in wanted.get(name, ())]:
            del hooks[key]


def _hooks_of(torch: Any) -> Iterator[tuple[str, dict[Any, Any]]]:
    for name, found in vars(torch.nn.modules.module).items():
        if name.startswith("_global_") and isinstance(found, dict):
            yield name, found


def _python_drew(random: Any, before: Any, now: Any) -> bool:
    """Return whether ``now`` is ``before`` advanced by some draws; the state words change once per block."""
    probe = random.Random()
    probe.setstate(before)
    for _ in range(_BLOCKS):
        if probe.getstate()[1][:_WORDS] == now[1][:_WORDS]:
            return True
        probe.getrandbits(32 * _WORDS)
    return False


def _numpy_drew(random: Any, before: Any, now: Any) -> bool:
    probe = random.RandomState()
    probe.set_state(before)
    for _ in range(_BLOCKS):
        if (probe.get_state()[1] == now[1]).all():
            return True
        probe.bytes(4 * _WORDS)
    return False


def _torch_drew(torch: Any, before: Any, now: Any) -> bool:
    initial = []
    for state in (before, now):
        probe = torch.Generator()
        probe.set_state(state)
        initial.append(probe.initial_seed())
    return bool(initial[0] == initial[1])


def _equal_tensors(before: Any, now: Any) -> bool:
    return all(bool((one == other).all()) for one, other in zip(before, now, strict=False))


def _equal_numpy(before: Any, now: Any) -> bool:
    return bool((before[1] == now[1]).all()) and (before[0], *before[2:]) == (now[0], *now[2:])


def _cuda_states(torch: Any) -> Any:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else UNKNOWN


def _waiting_seeds(torch: Any) -> Any:
    """Return the seeds that torch will set when CUDA starts, or ``UNKNOWN`` if it has started."""
    return UNKNOWN if torch.cuda.is_initialized() else dict(vars(torch.cuda._lazy_seed_tracker))


def _set_waiting_seeds(torch: Any, wanted: dict[str, Any]) -> None:
    """Restore the pending seeds. If the plugin started CUDA, set them now, or a random seed if none was pending."""
    if not torch.cuda.is_initialized():
        vars(torch.cuda._lazy_seed_tracker).update(wanted)
        return
    calls = [call for call in wanted["call_order"] if call]
    for set_seed, _ in calls:
        set_seed()
    if not calls:
        torch.cuda.seed_all()


def seeds() -> object:
    """Return a value that changes if torch is seeded but not if numbers are drawn; ``None`` if torch is not loaded."""
    torch = sys.modules.get("torch")
    return None if torch is None else (torch.initial_seed(), vars(torch.cuda._lazy_seed_tracker).copy())


RANDOM: tuple[Table, ...] = (
    (
        "random",
        (
            Part(
                "Python's random generator",
                lambda random: random.getstate(),
                lambda random, state: random.setstate(state),
                renew=lambda random: random.seed(),
                drew=_python_drew,
            ),
        ),
    ),
    (
        "numpy.random",
        (
            Part(
                "numpy's random generator",
                lambda random: random.get_state(),
                lambda random, state: random.set_state(state),
                same=_equal_numpy,
                renew=lambda random: random.seed(),
                drew=_numpy_drew,
            ),
        ),
    ),
    (
        "torch",
        (
            Part(
                "torch's random generator",
                lambda torch: torch.get_rng_state(),
                lambda torch, state: torch.set_rng_state(state),
                same=lambda before, now: _equal_tensors([before], [now]),
                renew=lambda torch: torch.seed(),
                drew=_torch_drew,
            ),
            Part(
                "torch's random generators on CUDA",
                _cuda_states,
                lambda torch, states: torch.cuda.set_rng_state_all(states),
                same=_equal_tensors,
            ),
            Part("the seeds of CUDA", _waiting_seeds, _set_waiting_seeds, silent=True),
        ),
    ),
)
"""Global random generators."""

ARITHMETIC: tuple[Table, ...] = (
    (
        "torch",
        (
            Part("torch's inference mode", lambda torch: torch.is_inference_mode_enabled(), _set_inference_mode, False),
            Part(
                "torch's default device",
                _default_device,
                lambda torch, device: torch.set_default_device(device),
                fresh=None,
            ),
            Part(
                "torch's function modes",
                lambda torch: torch._C._len_torch_function_stack(),
                _leave_function_modes,
                fresh=0,
            ),
            Part(
                "torch's dispatch modes",
                lambda torch: torch._C._len_torch_dispatch_stack(),
                _leave_dispatch_modes,
                fresh=0,
            ),
            Part(
                "torch's grad mode",
                lambda torch: torch.is_grad_enabled(),
                lambda torch, enabled: torch.set_grad_enabled(enabled),
                fresh=True,
            ),
            Part(
                "torch's default dtype",
                lambda torch: str(torch.get_default_dtype()).split(".")[1],
                lambda torch, dtype: torch.set_default_dtype(getattr(torch, dtype)),
                fresh="float32",
            ),
            Part("torch's deterministic algorithms", _deterministic, _set_deterministic, fresh=(False, False)),
            Part(
                "torch's anomaly detection",
                lambda torch: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
                lambda torch, value: torch.set_anomaly_enabled(*value),
                fresh=(False, True),
            ),
            Part(
                "torch's autocast",
                _autocast,
                _set_autocast,
                fresh=(0, True, *((False, dtype) for dtype in _AUTOCAST.values())),
            ),
            Part(
                "torch's float32 matmul precision",
                lambda torch: torch.get_float32_matmul_precision(),
                lambda torch, precision: torch.set_float32_matmul_precision(precision),
            ),
            *(
                Part(f"torch.{path}", operator.attrgetter(path), partial(_set_attribute, path), default)
                for path, default in _FLAGS.items()
            ),
            Part(
                "torch's number of threads",
                lambda torch: torch.get_num_threads(),
                lambda torch, threads: torch.set_num_threads(threads),
            ),
            Part(
                "flushing of denormal numbers",  # also enabled by libraries built with -ffast-math
                lambda _: _SMALLEST_NORMAL / 2 == 0.0,
                lambda torch, flushes: torch.set_flush_denormal(flushes),
                fresh=False,
            ),
        ),
    ),
)
"""State that affects values, gradients or their rounding."""

MODULE_HOOKS: tuple[Table, ...] = (
    (
        "torch",
        (Part("torch's hooks on every module", _global_hooks, _remove_global_hooks),),
    ),
)
"""Hooks that torch calls for every module. A hook plugin may add one during a run, an import may not."""
