"""Hooks that a plugin may implement. They are part of the public API."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from kdplug.contracts.life_cycle import ActingRunView, ReportView, RunView

PROJECT = "kdplug"
PREFIX = "kdplug_"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Offers = Iterable[tuple[str, str | Callable[..., Any]]]
"""Pairs of an entry name and its callable, or ``"module:attribute"``, which is imported on first use."""


@hookspec
def kdplug_losses() -> Offers:  # type: ignore[empty-body]
    """Losses that cannot be listed as entry points, such as a family generated in a loop.

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
    """Temperature schedulers: ``(student_logits, teacher_logits, temperature, *, settings) -> temperature``, one for
    all items or one for each.

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

    Layers count from 1; 0 is the output of the embeddings.

    ::

        @kdplug.hookimpl
        def kdplug_layer_maps():
            return [("first", lambda student_layers, teacher_layers: [(m, m) for m in range(1, student_layers + 1)])]
    """


@hookspec
def kdplug_tasks() -> Offers:  # type: ignore[empty-body]
    """Tasks for recipes: classes whose ``__init__`` takes the settings.

    ::

        @kdplug.hookimpl
        def kdplug_tasks():
            return [("my_corpus", "kdplug_mytask:Corpus")]
    """


@hookspec
def kdplug_cache_codecs() -> Offers:  # type: ignore[empty-body]
    """Codecs that compress cached teacher logits: classes whose ``__init__`` takes the settings.

    ::

        @kdplug.hookimpl
        def kdplug_cache_codecs():
            return [("top1", "kdplug_mycodec:Top1")]
    """


@hookspec
def kdplug_balancers() -> Offers:  # type: ignore[empty-body]
    """Balancers of the terms' weights: classes whose ``__init__`` takes the settings, with ``update(values, gradients,
    progress) -> weights``.

    ::

        @kdplug.hookimpl
        def kdplug_balancers():
            return [("inverse_value", "kdplug_mybalancer:InverseValue")]
    """


@hookspec
def kdplug_teacher_updates() -> Offers:  # type: ignore[empty-body]
    """Teacher updates: ``(teacher_tensor, student_tensor, progress, *, settings) -> tensor``.

    ::

        @kdplug.hookimpl
        def kdplug_teacher_updates():
            return [("midpoint", lambda teacher_tensor, student_tensor: (teacher_tensor + student_tensor) / 2)]
    """


@hookspec
def kdplug_student_transforms() -> Offers:  # type: ignore[empty-body]
    """Student transforms: classes whose ``__init__`` takes the settings, with ``prepare(student)`` and
    ``finish(student)``, which return a student.

    ::

        @kdplug.hookimpl
        def kdplug_student_transforms():
            return [("half_depth", "kdplug_mytransform:HalfDepth")]
    """


@hookspec
def kdplug_teachers() -> Offers:  # type: ignore[empty-body]
    """Teachers that are not PyTorch modules: classes whose ``__init__`` takes the settings; a call with a batch returns
    the mapping that an adaptor returns.

    ::

        @kdplug.hookimpl
        def kdplug_teachers():
            return [("served", "kdplug_myteacher:Served")]
    """


@hookspec
def kdplug_evaluators() -> Offers:  # type: ignore[empty-body]
    """Evaluators: classes whose ``__init__`` takes the settings; a call with ``(model, task)`` returns figures by name.

    ::

        @kdplug.hookimpl
        def kdplug_evaluators():
            return [("latency", "kdplug_myevaluator:Latency")]
    """


@hookspec
def kdplug_run_start(run: RunView) -> None:
    """Called before the first step of a run.

    ::

        @kdplug.hookimpl
        def kdplug_run_start(run):
            print(f"{run.total_steps} steps")
    """


@hookspec
def kdplug_step_start(run: ActingRunView) -> None:
    """Called before each optimizer step, only for a plugin that the config names under ``plugins.hooks``.

    ::

        @kdplug.hookimpl
        def kdplug_step_start(run):
            if run.step == 100:
                for parameter in run.model.embeddings.parameters():
                    parameter.requires_grad_(False)
    """


@hookspec
def kdplug_step_end(run: RunView, step: int, report: ReportView) -> None:
    """Called after each optimizer step. Values of ``report`` are device tensors: reading one waits for the device.

    ::

        @kdplug.hookimpl
        def kdplug_step_end(step, report):
            if step % 100 == 0:
                print(step, {name: float(term.value) for name, term in report.terms.items()})
    """


@hookspec
def kdplug_evaluated(run: ActingRunView, figures: Mapping[str, float]) -> None:
    """Called after each evaluation during training, only for a plugin that the config names under ``plugins.hooks``.

    ::

        @kdplug.hookimpl
        def kdplug_evaluated(run, figures):
            if figures["accuracy"] > 0.99:
                run.stop("accuracy above 0.99")
    """


@hookspec
def kdplug_run_end(run: RunView, error: BaseException | None) -> None:
    """Called at the end of a run; ``error`` is the exception that ended it, or ``None`` if the run finished.

    ::

        @kdplug.hookimpl
        def kdplug_run_end(run, error):
            notify("failed" if error else "done")
    """
