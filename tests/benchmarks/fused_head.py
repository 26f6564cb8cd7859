"""Distilling a large vocabulary from hidden states: time and memory against the matrix products that nobody can avoid.

    python tests/benchmarks/fused_head.py [--items 2048] [--classes 32000 152000] [--types float32 bfloat16]

A step is forward and backward: from the student's hidden states and head weight and the teacher's to the loss, and back to
the gradients of the student's two. The floor is its four matrix products alone. Everything else is measured in the same run,
interleaved: a floor before and after each of the others, round by round; a ratio is the median over the rounds of the
quotient to the mean of these two floors. CPU time, which a crowded machine disturbs less than wall time; events on a GPU, where there is one.

Peak memory is the largest sum of what PyTorch's allocator handed out and did not get back yet within one step, beyond what
was there before and without the gradients that stay. What the matrix library takes for itself is not seen, on any side.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own chatter
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import kdplug
from kdplug import DistillationConfig, FactoredLogits, LossSum, Objective
from kdplug.objective.chunked.chunk_source import chunk_length

MIB = 1 << 20
TEMPERATURE = 2.0
CLOSED = ("kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd", "topk", "ce", "mse")

Step = Callable[["Inputs"], None]


@dataclass(frozen=True)
class Inputs:
    """Hidden states and heads. The student's want a gradient."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    labels: Tensor

    @classmethod
    def draw(cls, options: argparse.Namespace, classes: int, dtype: torch.dtype, device: str) -> Inputs:
        torch.manual_seed(0)
        narrow, wide, items = options.student, options.teacher, options.items

        def head(width: int) -> Tensor:
            return (torch.randn(classes, width, device=device) / width**0.5).to(dtype)

        def states(width: int) -> Tensor:
            return torch.randn(items, width, device=device).to(dtype)

        labels = torch.randint(classes, (items,), device=device)
        return cls(states(narrow).requires_grad_(), head(narrow).requires_grad_(), states(wide), head(wide), labels)

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None

    def logits(self) -> tuple[Tensor, Tensor]:
        """Both sides multiplied out."""
        student = self.hidden @ self.weight.t()
        with torch.no_grad():
            return student, self.teacher_hidden @ self.teacher_weight.t()


def floor(inputs: Inputs) -> None:
    """The four products, and nothing between them."""
    with torch.no_grad():
        student, _teacher = inputs.logits()
        inputs.hidden.grad = student @ inputs.weight
        inputs.weight.grad = student.t() @ inputs.hidden


def naive(inputs: Inputs) -> None:
    student, teacher = (logits.float() / TEMPERATURE for logits in inputs.logits())
    loss = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True
    )
    (loss * TEMPERATURE**2).backward()  # type: ignore[no-untyped-call]


def textbrewer() -> Step:
    from textbrewer.losses import kd_ce_loss

    def step(inputs: Inputs) -> None:
        kd_ce_loss(*inputs.logits(), TEMPERATURE).backward()

    return step


def trl(beta: float) -> Step:
    from trl.experimental.gkd import GKDTrainer

    def step(inputs: Inputs) -> None:
        GKDTrainer.generalized_jsd_loss(*inputs.logits(), beta=beta, temperature=TEMPERATURE).backward()

    return step


def liger(beta: float, *, compiled: bool) -> Step:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, temperature=TEMPERATURE, compiled=compiled
    )

    def step(inputs: Inputs) -> None:
        loss(inputs.hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight, inputs.labels).backward()

    return step


def plain_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> LossSum:
    """A KL divergence as anyone would write it, which knows nothing of pieces and has no closed form."""
    student, teacher = (logits / temperature for logits in (student_logits, teacher_logits))
    total = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True
    )
    return LossSum(total * temperature**2, student_logits[..., 0].numel())


def ours(loss: str, chunk: int | str) -> Step:
    objective = Objective(DistillationConfig(kd_loss_type=loss, temperature=TEMPERATURE, logit_chunk=chunk))

    def step(inputs: Inputs) -> None:
        student = FactoredLogits(inputs.hidden, inputs.weight)
        teacher = FactoredLogits(inputs.teacher_hidden, inputs.teacher_weight)
        objective({"logits": student}, {"logits": teacher}).total.backward()  # type: ignore[no-untyped-call]

    return step


def contestants(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Step]]]:
    """Name and maker of each. A maker that fails says why its row is missing."""
    kdplug.losses.register("plain_kl")(plain_kl)
    if not options.ours:
        yield "log_softmax + kl_div", lambda: naive
        yield "TextBrewer kd_ce_loss", textbrewer
        for beta in (0.0, 0.5):
            yield f"TRL GKD, beta {beta:g}", lambda beta=beta: trl(beta)
        for beta in (0.0, 0.5):
            yield f"Liger chunked, beta {beta:g}", lambda beta=beta: liger(beta, compiled=False)
            if options.compile:
                yield f"Liger compiled, beta {beta:g}", lambda beta=beta: liger(beta, compiled=True)
    yield "kdplug, any loss", lambda: ours("plain_kl", options.chunk)
    for name in options.losses:
        yield f"kdplug {name}", lambda name=name: ours(name, options.chunk)


def built(options: argparse.Namespace, inputs: Inputs) -> dict[str, Step]:
    """Those that run here, each once tried."""
    found: dict[str, Step] = {}
    for name, make in contestants(options):
        if options.only and not any(word in name for word in options.only):
            continue
        try:
            step = make()
            inputs.clear()
            step(inputs)
        except Exception as error:  # whatever a package of somebody else raises is a reason to leave its row out
            print(f"{name:<24} left out: {type(error).__name__}: {str(error).splitlines()[0][:90]}", flush=True)
        else:
            found[name] = step
    return found


def seconds(step: Step, inputs: Inputs) -> float:
    inputs.clear()
    if inputs.hidden.device.type != "cuda":
        start = time.process_time()
        step(inputs)
        return time.process_time() - start
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    step(inputs)
    events[1].record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1]) / 1e3


def peak_bytes(step: Step, inputs: Inputs) -> int:
    """The most that was held beyond the inputs, without the gradients that are left."""
    inputs.clear()
    kept = sum(tensor.numel() * tensor.element_size() for tensor in (inputs.hidden, inputs.weight))
    if inputs.hidden.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(inputs)
        return torch.cuda.max_memory_allocated() - before - kept
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(inputs)
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda event: event.start_ns())
    held = highest = 0
    for event in events:
        held += event.nbytes()
        highest = max(highest, held)
    return highest - kept


def compare(options: argparse.Namespace, classes: int, dtype: torch.dtype, device: str) -> None:
    """Print one table."""
    inputs = Inputs.draw(options, classes, dtype, device)
    length = chunk_length("auto", options.items, classes, dtype.itemsize, inputs.hidden.device)
    length = options.chunk if isinstance(options.chunk, int) else length
    two = 2 * length * classes * dtype.itemsize / MIB
    print(
        f"\n{device}, {dtype}, N={options.items}, V={classes}, widths {options.student} and {options.teacher}; "
        f"pieces of {length}, two buffers {two:.0f} MiB"
    )
    steps = built(options, inputs)
    floors: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    seconds(floor, inputs)
    floors.append(seconds(floor, inputs))
    for _ in range(options.rounds):
        for name, step in steps.items():
            taken = seconds(step, inputs)
            floors.append(seconds(floor, inputs))
            ratios[name].append(2 * taken / (floors[-1] + floors[-2]))
    print(f"{'floor':<24} {statistics.median(floors):8.3f} s")
    for name, step in steps.items():
        low, high = min(ratios[name]), max(ratios[name])
        peak = peak_bytes(step, inputs) / MIB
        print(
            f"{name:<24} {statistics.median(ratios[name]):6.2f}  ({low:.2f} to {high:.2f}) {peak:8.0f} MiB", flush=True
        )
    inputs.clear()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2048, help="tokens of a step")
    parser.add_argument("--classes", type=int, nargs="*", default=[32_000, 152_000])
    parser.add_argument("--types", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--student", type=int, default=512, help="width of the student")
    parser.add_argument("--teacher", type=int, default=1024, help="width of the teacher")
    parser.add_argument("--chunk", type=lambda text: text if text == "auto" else int(text), default="auto")
    parser.add_argument("--losses", nargs="*", default=list(CLOSED), help="the closed forms to run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="Liger's losses also under torch.compile")
    parser.add_argument("--ours", action="store_true", help="kdplug's rows alone")
    parser.add_argument("--only", nargs="*", help="the rows whose name has one of these words in it")
    parser.add_argument("--device", nargs="*", help="default: cpu, and cuda where there is one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    devices = options.device or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    print(
        f"torch {torch.__version__}, {options.threads} thread(s), {options.rounds} rounds, load {os.getloadavg()[0]:.1f}"
    )
    for device in devices:
        for classes in options.classes:
            for dtype in options.types:
                compare(options, classes, getattr(torch, dtype), device)


if __name__ == "__main__":
    main()
