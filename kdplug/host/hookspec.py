"""The hooks that a plugin may implement. Growing this list is growing the public face."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from kdplug.contracts.life_cycle import ReportView, RunView

PROJECT = "kdplug"
PREFIX = "kdplug_"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Offers = Iterable[tuple[str, str | Callable[..., Any]]]
"""Pairs of an entry's name and its callable, or ``"module:attribute"`` to import it from when it is named."""


@hookspec
def kdplug_losses() -> Offers:  # type: ignore[empty-body]
    """Losses that cannot be listed as entry points, a family made in a loop for example.

    ::

        @kdplug.hookimpl
        def kdplug_losses():
            for p in (1, 2):
                yield f"lp{p}", partial(lp_distance, p=p)
            yield "huber", "kdplug_myloss.huber:huber"
    """


@hookspec
def kdplug_projections() -> Offers:  # type: ignore[empty-body]
    """Projections: ``(in_dim, out_dim, *, settings) -> nn.Module``.

    ::

        @kdplug.hookimpl
        def kdplug_projections():
            return [("orthogonal", "kdplug_myproj:Orthogonal")]
    """


@hookspec
def kdplug_weight_schedulers() -> Offers:  # type: ignore[empty-body]
    """Weight schedulers: ``(progress, *, settings) -> float``.

    ::

        @kdplug.hookimpl
        def kdplug_weight_schedulers():
            return [("cosine", lambda progress: 0.5 * (1 + math.cos(math.pi * progress)))]
    """


@hookspec
def kdplug_temperature_schedulers() -> Offers:  # type: ignore[empty-body]
    """Temperature schedulers: ``(student_logits, teacher_logits, temperature, *, settings) -> tensor over items``.

    ::

        @kdplug.hookimpl
        def kdplug_temperature_schedulers():
            return [("by_entropy", "kdplug_mytemp:by_entropy")]
    """


@hookspec
def kdplug_teacher_combiners() -> Offers:  # type: ignore[empty-body]
    """Teacher combiners: ``(teacher_logits_list, *, settings) -> logits``.

    ::

        @kdplug.hookimpl
        def kdplug_teacher_combiners():
            return [("median", lambda teacher_logits_list: torch.stack(teacher_logits_list).median(0).values)]
    """


@hookspec
def kdplug_layer_maps() -> Offers:  # type: ignore[empty-body]
    """Layer maps: ``(student_layers, teacher_layers, *, settings) -> pairs of layer numbers``, student first.

    Layers count from 1; 0 is what the embeddings put out.

    ::

        @kdplug.hookimpl
        def kdplug_layer_maps():
            return [("first", lambda student_layers, teacher_layers: [(m, m) for m in range(1, student_layers + 1)])]
    """


@hookspec
def kdplug_tasks() -> Offers:  # type: ignore[empty-body]
    """Tasks that a recipe may name: classes whose ``__init__`` takes the settings.

    ::

        @kdplug.hookimpl
        def kdplug_tasks():
            return [("my_corpus", "kdplug_mytask:Corpus")]
    """


@hookspec
def kdplug_cache_codecs() -> Offers:  # type: ignore[empty-body]
    """Ways to keep a teacher's logits: classes whose ``__init__`` takes the settings.

    ::

        @kdplug.hookimpl
        def kdplug_cache_codecs():
            return [("top1", "kdplug_mycodec:Top1")]
    """


@hookspec
def kdplug_run_start(run: RunView) -> None:
    """A run is about to take its first step.

    ::

        @kdplug.hookimpl
        def kdplug_run_start(run):
            print(f"{run.total_steps} steps")
    """


@hookspec
def kdplug_step_end(run: RunView, step: int, report: ReportView) -> None:
    """An optimizer step is done. The values of ``report`` are tensors on the device: reading one waits for it.

    ::

        @kdplug.hookimpl
        def kdplug_step_end(step, report):
            if step % 100 == 0:
                print(step, {name: float(term.value) for name, term in report.terms.items()})
    """


@hookspec
def kdplug_run_end(run: RunView, error: BaseException | None) -> None:
    """A run is over; ``error`` is what ended it, ``None`` where it came to its end.

    ::

        @kdplug.hookimpl
        def kdplug_run_end(run, error):
            notify("failed" if error else "done")
    """
