"""Match losses side by side with TextBrewer's: time and peak memory of a forward and backward pass.

    python tests/benchmarks/match_losses.py [--rounds 15] [--only cos fsp] [--threads 1] [--clock cpu]

Both run on the same inputs in one process, in turns (A B A B …); a row shows the median of each and their ratio, so a
busy machine slows both. ``--clock cpu`` counts the process's CPU time, which waiting for a busy core does not stretch
(use it with one thread), ``--clock wall`` the time that passed.

Memory is the largest sum of bytes that PyTorch's CPU allocator handed out and had not got back, counted by
``torch.profiler`` over one forward and backward pass; the inputs were there before and do not count, the gradients that
stay do. What the matrix library allocates for itself is not seen, on either side.

TextBrewer's masked ``nst`` divides by the length on PyPI, so its value differs there by (length / width)²; the last
column compares after that factor.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own chatter

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from kdplug_presets import attention, gram, hidden

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from textbrewer import losses as textbrewer

MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """One row: two losses, and how to make what they read."""

    loss: str
    shape: str
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    make: Callable[[], tuple[list[Tensor], list[Tensor], Tensor | None]]
    factor: float = 1.0


def ragged_mask(batch: int, length: int) -> Tensor:
    """Valid lengths spread evenly from a quarter of the length to all of it."""
    lengths = torch.linspace(length / 4, length, batch).round()
    return (torch.arange(length) < lengths.unsqueeze(1)).float()


def inputs(shape: tuple[int, ...], masked: bool, copies: int) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Student tensors that want a gradient, teacher tensors, and a mask."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, shape, generator=generator)
    student = [draw().requires_grad_() for _ in range(copies)]
    length = shape[2] if len(shape) == 4 else shape[1]
    return student, [draw() for _ in range(copies)], ragged_mask(shape[0], length) if masked else None


def one(loss: Callable[..., object], student: list[Tensor], teacher: list[Tensor], mask: Tensor | None) -> Tensor:
    """The scalar of a loss on single layers or, where there are two tensors, on a pair."""
    value = loss(student, teacher, mask) if len(student) > 1 else loss(student[0], teacher[0], mask)
    return value if isinstance(value, Tensor) else value.value  # type: ignore[attr-defined, no-any-return]


def cases() -> Iterator[Case]:
    """The shapes: batch 32, length 128, 12 heads, hidden 768, and two where the other Gram route is the cheaper one."""
    maps, states, small = (32, 12, 128, 128), (32, 128, 768), (32, 128, 312)
    rows = [
        ("attention_mse", attention.attention_mse, textbrewer.att_mse_loss, maps, True, 1),
        ("attention_mse", attention.attention_mse, textbrewer.att_mse_loss, maps, False, 1),
        ("attention_mse_sum", attention.attention_mse_sum, textbrewer.att_mse_sum_loss, maps, True, 1),
        ("attention_mse_sum", attention.attention_mse_sum, textbrewer.att_mse_sum_loss, maps, False, 1),
        ("attention_ce", attention.attention_ce, textbrewer.att_ce_loss, maps, True, 1),
        ("attention_ce", attention.attention_ce, textbrewer.att_ce_loss, maps, False, 1),
        ("attention_ce_mean", attention.attention_ce_mean, textbrewer.att_ce_mean_loss, maps, True, 1),
        ("attention_ce_mean", attention.attention_ce_mean, textbrewer.att_ce_mean_loss, maps, False, 1),
        ("hidden_mse", hidden.hidden_mse, textbrewer.hid_mse_loss, states, True, 1),
        ("hidden_mse", hidden.hidden_mse, textbrewer.hid_mse_loss, states, False, 1),
        ("cos", hidden.cos, textbrewer.cos_loss, states, True, 1),
        ("cos", hidden.cos, textbrewer.cos_loss, states, False, 1),
        ("pkd", hidden.pkd, textbrewer.pkd_loss, states, True, 1),
        ("fsp", gram.fsp, textbrewer.fsp_loss, states, True, 2),
        ("fsp", gram.fsp, textbrewer.fsp_loss, states, False, 2),
        ("fsp", gram.fsp, textbrewer.fsp_loss, small, True, 2),
        ("nst", gram.nst, textbrewer.mmd_loss, states, True, 2),
        ("nst", gram.nst, textbrewer.mmd_loss, states, False, 2),
        ("nst", gram.nst, textbrewer.mmd_loss, (32, 512, 64), True, 2),
    ]
    for name, ours, theirs, shape, masked, copies in rows:
        factor = (shape[1] / shape[2]) ** 2 if name == "nst" and masked else 1.0
        label = "x".join(str(size) for size in shape) + (" masked" if masked else "")
        yield Case(
            name, label, partial(one, ours), partial(one, theirs), partial(inputs, shape, masked, copies), factor
        )


def step(loss: Callable[..., Tensor], student: list[Tensor], teacher: list[Tensor], mask: Tensor | None) -> Tensor:
    """Forward and backward pass from clean gradients."""
    for tensor in student:
        tensor.grad = None
    value = loss(student, teacher, mask)
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


def peak_bytes(run: Callable[[], Tensor]) -> int:
    """Largest sum of bytes allocated and not yet freed during ``run``."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda event: event.start_ns())
    held = highest = 0
    for event in events:
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def compare(case: Case, rounds: int, clock: Callable[[], float]) -> tuple[float, float, int, int, float]:
    """Median seconds and peak bytes of both (theirs, ours), and the relative difference of the values."""
    student, teacher, mask = case.make()
    runs = [partial(step, loss, student, teacher, mask) for loss in (case.theirs, case.ours)]
    values = [run() for run in runs]
    difference = abs(values[0].item() * case.factor / values[1].item() - 1.0)
    peaks = []
    for run in runs:
        for tensor in student:
            tensor.grad = None
        peaks.append(peak_bytes(run))
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for taken, run in zip(times, runs, strict=True):
            start = clock()
            run()
            taken.append(clock() - start)
    theirs, ours = (statistics.median(taken) for taken in times)
    return theirs, ours, peaks[0], peaks[1], difference


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each side")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="what to measure")
    parser.add_argument("--only", nargs="*", default=[], metavar="LOSS", help="names of losses to run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    setting = f"{options.threads} thread(s), {options.rounds} rounds, {options.clock} time"
    print(f"torch {torch.__version__}, {setting}, float32, forward + backward")
    print(
        f"{'loss':<18} {'shape':<22} {'textbrewer':>11} {'kdplug':>9} {'ratio':>6} {'peak MiB':>15} {'value off':>10}"
    )
    for case in cases():
        if options.only and case.loss not in options.only:
            continue
        theirs, ours, their_peak, our_peak, difference = compare(case, options.rounds, clock)
        print(
            f"{case.loss:<18} {case.shape:<22} {theirs * 1e3:8.1f} ms {ours * 1e3:6.1f} ms {theirs / ours:5.2f}x "
            f"{their_peak / MIB:6.1f} > {our_peak / MIB:6.1f} {difference:10.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
