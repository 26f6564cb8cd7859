"""Set up a run from built objects and train."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.optim import Optimizer

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.engine.accumulation import Accumulation
from kdplug.engine.accumulation_batches import AccumulationBatches
from kdplug.engine.balancing import Balancing
from kdplug.engine.cache.session import Caches, CacheSession, cache_identity
from kdplug.engine.checkpoint.checkpoint import Checkpoints, begin, read_run
from kdplug.engine.checkpoint.identity import FINGERPRINTS, check_ranks, run_identity
from kdplug.engine.checkpoint.in_use import in_use
from kdplug.engine.checkpoint.preemption import preemption
from kdplug.engine.checkpoint.resume import check_places, check_unused, find_checkpoint, go_on, load_weights
from kdplug.engine.checkpoint.weights import frozen_weights, gradients_required
from kdplug.engine.example_ids import ExampleIds
from kdplug.engine.finite import FiniteWatch
from kdplug.engine.forward_state import materialize, modes
from kdplug.engine.loop import Loop
from kdplug.engine.observe.activity import busy
from kdplug.engine.observe.counted import CountWatch
from kdplug.engine.observe.event import Actor, Callbacks, RunObserver
from kdplug.engine.observe.progress import display
from kdplug.engine.observe.tracking import Journal, journal, tracking
from kdplug.engine.optimizer import add_groups, check_student, make_scheduler, parameters, unwrap
from kdplug.engine.parallel.agreement import outputs_compared
from kdplug.engine.parallel.process import equalize_buffers, keep_buffers_apart, on_main, process, shard
from kdplug.engine.run import Plan, Request, Run, RunResult, length, make_plan
from kdplug.engine.self_teacher import SelfTeacher
from kdplug.engine.teacher import AbsentModel, TeacherSide, check_apart
from kdplug.engine.training_module import TrainingModule
from kdplug.engine.updated_teacher import UpdatedTeacher
from kdplug.errors import RunError
from kdplug.objective.objective import counts_recorded, mark_trained
from kdplug.objective.term import mark_pooled


def train(
    pair: TrainingModule,
    teacher: TeacherSide | None,
    config: TrainingConfig,
    request: Request,
    *,
    observers: Iterable[RunObserver] = (),
    actor: Actor | None = None,
    strict: bool = False,
    show_progress: bool = True,
    doing: str = "distilling",
    caches: Caches = None,
    update: DistillationConfig | None = None,
) -> RunResult:
    """Train ``pair.student`` and the trainable parts of the objective according to ``request``.

    During the run the student is in train mode, and the teacher is in eval mode and frozen; afterwards both are
    restored. The progress display shows the text ``doing``. ``observers`` are notified of the run; an exception in one
    ends the run only if ``strict``. ``actor`` is notified first and may change the run. With ``caches``, the teacher
    runs once on every example, before the first step. With ``update``, a config, its ``teacher_update`` changes the
    teacher after each optimizer step.

    Raises: ``ConfigError`` for an invalid request; ``RunError`` if the run cannot start or continue.
    """
    start = time.monotonic()
    optimizer = unwrap(request.optimizer)
    _check_sides(pair, teacher)
    check_student(optimizer, pair.student)
    with ExitStack() as stack:
        accelerator = _process(config, stack, doing=doing, shown=show_progress)
        identity = _identity(pair, teacher, request)
        if config.seed is not None:
            set_seed(config.seed, device_specific=True)
        _settle(pair, teacher, accelerator, stack, shards_teacher=_shards_teacher(config, accelerator, caches))
        updating = None if update is None else UpdatedTeacher(update, teacher, pair.student, accelerator)
        ids = ExampleIds(pair.objective, request.dataloader, request.batch_postprocessor)
        caching = CacheSession(
            caches,
            teacher,
            request.dataloader,
            request.batch_postprocessor,
            request.model_args,
            example_ids=ids,
        )
        teacher = caching.teacher
        loader = shard(accelerator, caching.dataloader)
        plan = make_plan(loader, config, num_epochs=request.num_epochs, num_steps=request.num_steps)
        _check_evaluated(request, plan)
        identity |= {"total_steps": plan.total_steps, "processes": accelerator.num_processes}
        output_dir = Path(config.output_dir)
        own = {"output_dir": str(output_dir), "batches": length(loader)}
        identity = _agreed(identity, own, accelerator, updating)
        windows = AccumulationBatches(loader, config.gradient_accumulation_steps, plan.passes, caching.postprocess)
        folder = _start(stack, accelerator, request, output_dir, plan)
        caching.open(accelerator)
        caching.check(pair.objective)
        _read_first_batches(pair, teacher, windows, ids, request=request, accelerator=accelerator)
        caching.fill(pair.objective, shown=show_progress and accelerator.is_main_process)
        stack.enter_context(_hooked(pair, teacher))
        saved = {} if folder is None else read_run(folder)
        identity |= cache_identity(caches)
        new_groups = add_groups(optimizer, pair.objective.param_groups())
        run = _run(pair, teacher, optimizer, plan=plan, config=config, accelerator=accelerator)
        frozen = _loaded(pair, updating, identity, saved, folder, accelerator=accelerator, request=request)
        scheduler = _scheduler(optimizer, new_groups, request)
        model, prepared = _prepared(accelerator, pair, optimizer)
        several = config.gradient_accumulation_steps > 1 or run.num_processes > 1
        mark_pooled(pair.objective, is_pooled=several and config.normalization == "global")
        mark_trained(pair.objective)
        recorded = stack.enter_context(counts_recorded(pair.objective, withholds=run.num_processes > 1))
        trained = _trained(optimizer, pair)
        balancing = Balancing(pair, run, accelerator)
        accumulation = Accumulation(
            run=run,
            accelerator=accelerator,
            pair=pair,
            model=model,
            teacher=teacher,
            model_args=request.model_args,
            parameters=trained,
            over=config.normalization,
            uneven=run.num_processes > 1 and config.gradient_accumulation_steps > 1 and length(loader) is None,
            watch=FiniteWatch(stops=config.on_nonfinite == "stop"),
            measured=balancing.measured,
        )
        loop = Loop(
            run=run,
            plan=plan,
            accelerator=accelerator,
            accumulation=accumulation,
            scheduler=scheduler,
            optimizer=prepared,
            parameters=trained,
            updating=updating,
            max_grad_norm=_limit(request.max_grad_norm),
            logging_steps=config.logging_steps,
            counts=CountWatch(recorded),
            events=Callbacks([*filter(None, [actor]), *observers], strict=strict),
            actor=actor,
            display=stack.enter_context(display(plan.total_steps, shown=show_progress and run.is_main, doing=doing)),
            tracking=stack.enter_context(
                tracking(config, is_main=run.is_main, name=run.output_dir.name, about=_configs(identity))
            ),
            journal=Journal(),
            callback=request.callback,
            checkpoints=Checkpoints(run.output_dir, saved.get("run", ""), config.keep_last, frozen=frozen),
            identity=identity,
            preemption=stack.enter_context(preemption()),
            windows=windows,
            balancing=balancing,
            required=gradients_required(pair.student),
            evaluation=request.evaluation,
            on_nonfinite=config.on_nonfinite,
        )
        of_actor = _restore_or_calibrate(loop, saved, folder)
        loop.checkpoints.run = begin(
            run.output_dir,
            is_main=run.is_main,
            name=saved.get("run", ""),
            step=saved.get("step"),
            overwrite=request.overwrite,
        )
        stack.enter_context(outputs_compared(pair.objective, accelerator))
        loop.journal = stack.enter_context(journal(run.output_dir, is_main=run.is_main, after=run.step))
        with _observed(loop, of_actor):
            loop.walk()
    return RunResult(
        run.step,
        loop.report,
        run.output_dir,
        tuple(file for file in loop.written if file.is_file()),  # the others were pruned
        time.monotonic() - start,
        best=None if loop.standing.step is None else run.output_dir / f"step-{loop.standing.step}",
        stopped_early=loop.stopped_early,
        skipped=loop.skipped,
        stop_reason=loop.run.stop_reason if loop.stopped_early else None,
    )


def _process(config: TrainingConfig, stack: ExitStack, *, doing: str, shown: bool) -> Accelerator:
    """Set up this process; until ``stack`` closes, the main one reports what takes long if ``shown``."""
    accelerator = stack.enter_context(process(config.device, _precision(config)))
    stack.enter_context(busy(doing.capitalize(), shown=shown and accelerator.is_main_process))
    return accelerator


def _loaded(
    pair: TrainingModule,
    updating: UpdatedTeacher | None,
    identity: Mapping[str, Any],
    saved: Mapping[str, Any],
    folder: Path | None,
    *,
    accelerator: Accelerator,
    request: Request,
) -> dict[str, str]:
    """Load the weights in ``folder``, if any, and return digests of the student's frozen weights."""
    if folder is None:
        return frozen_weights(pair.student)
    found = load_weights(pair, identity, saved, folder, accelerator, changed_is_meant=request.resume_changed)
    if updating is not None:
        updating.load(folder)
    return found


def _agreed(
    identity: dict[str, Any], own: dict[str, Any], accelerator: Accelerator, updating: UpdatedTeacher | None
) -> dict[str, Any]:
    """Compare the identity, and what is of this call only, across the processes, and return it as a checkpoint holds it."""
    found = check_ranks(identity | own, accelerator.num_processes)
    kept = {key: value for key, value in found.items() if key not in own}  # a resumed run may have moved
    return kept if updating is None else kept | updating.identity(kept)


def _identity(pair: TrainingModule, teacher: TeacherSide | None, request: Request) -> dict[str, Any]:
    with busy("Hashing the data and the teacher"):
        return run_identity(pair, teacher, request)


def _read_first_batches(
    pair: TrainingModule,
    teacher: TeacherSide | None,
    windows: AccumulationBatches,
    ids: ExampleIds,
    *,
    request: Request,
    accelerator: Accelerator,
) -> None:
    """Build what depends on the outputs for the first batches, and check their examples' ids; nothing is consumed."""
    if ids.are_requested:
        windows.examples()  # raises an error if a batch has none
        ids.check_rows()
    if pair.objective.needs_materialize:
        with _hooked(pair, teacher):
            for batch in windows.examples():
                count = ids.count_for(batch)
                materialize(pair, teacher, batch, request.model_args, accelerator.device, num_examples=count)


def _check_evaluated(request: Request, plan: Plan) -> None:
    """Warn about an evaluation that never runs, because it follows checkpoints and the plan has none."""
    given = request.evaluation
    if given is not None and given.every is None and given.times is None and not plan.saves and plan.passes:
        warnings.warn(
            "the evaluation never runs: without 'every' it runs at each checkpoint, and ckpt_frequency=0 writes none. "
            "Set Evaluation(every=...) to a number of optimizer steps",
            stacklevel=2,
        )


def _start(stack: ExitStack, accelerator: Accelerator, request: Request, output_dir: Path, plan: Plan) -> Path | None:
    """Lock the run's folder until ``stack`` closes, check it, and return the checkpoint to resume from, if any.

    The main process does so; an error is raised on every process.
    """

    def start() -> Path | None:
        stack.enter_context(in_use(output_dir))
        folder = find_checkpoint(request.resume, output_dir)
        check_unused(output_dir, folder, request)
        check_places(output_dir, folder, plan, request.evaluation)
        return folder

    return on_main(accelerator, start)


def _restore_or_calibrate(loop: Loop, saved: Mapping[str, Any], folder: Path | None) -> Mapping[str, Any] | None:
    """Restore the run from the checkpoint ``folder``, and return the saved state of its actor; in a new run, compute the
    weights that are fixed before training.
    """
    if folder is None:
        loop.balancing.calibrate(loop.windows, loop.accumulation)
        return None
    return go_on(loop, saved, folder)


@contextmanager
def _hooked(pair: TrainingModule, teacher: TeacherSide | None) -> Iterator[None]:
    """Register capture hooks on both models for the block. ``materialize`` may resolve more paths: call it again."""
    with pair.hooked(), nullcontext() if teacher is None else teacher.hooked(pair.objective):
        yield


@contextmanager
def _observed(loop: Loop, of_actor: Mapping[str, Any] | None) -> Iterator[None]:
    """Notify the observers of the start and the end of the run. ``of_actor`` is the saved state of a resumed run's actor."""
    with loop.windows.random_state_kept() if of_actor is not None else nullcontext():  # of the saved step
        loop.events.run_start(loop.run)
    try:
        if loop.actor is not None and of_actor is not None:
            with loop.windows.random_state_kept():
                loop.actor.load_state(of_actor)
        yield
    except BaseException as error:
        loop.events.run_end(loop.run, error)
        raise
    loop.events.run_end(loop.run, None)


def _settle(
    pair: TrainingModule,
    teacher: TeacherSide | None,
    accelerator: Accelerator,
    stack: ExitStack,
    *,
    shards_teacher: bool,
) -> None:
    """Move both sides to the device, set their modes, and freeze the teacher."""
    if isinstance(teacher, SelfTeacher):
        teacher.check(accelerator)
    stack.enter_context(modes(training=pair, evaluating=None if teacher is None else teacher.model))
    pair.to(accelerator.device)
    if teacher is not None:
        stack.enter_context(teacher.frozen(pair.student))
        if shards_teacher:
            from kdplug.engine.parallel.fsdp import shard_teacher

            shard_teacher(accelerator, teacher)
        else:
            teacher.to(accelerator.device)


def _shards_teacher(config: TrainingConfig, accelerator: Accelerator, caches: Caches) -> bool:
    if config.shard_teacher and not accelerator.is_fsdp2:
        raise RunError(
            "shard_teacher needs FSDP2, for which accelerate is not configured. Set distributed_type: FSDP and fsdp_version: 2 in "
            "accelerate's config, or remove shard_teacher"
        )
    if config.shard_teacher and caches:
        raise RunError(
            "shard_teacher and is_caching_logits cannot be combined: a cache runs the teacher only once. Remove one of them"
        )
    return config.shard_teacher


def _run(
    pair: TrainingModule,
    teacher: TeacherSide | None,
    optimizer: Optimizer,
    *,
    plan: Plan,
    config: TrainingConfig,
    accelerator: Accelerator,
) -> Run:
    return Run(
        model=pair.student,
        teacher=None if teacher is None or isinstance(teacher.model, AbsentModel) else teacher.model,
        objective=pair.objective,
        optimizer=optimizer,
        total_steps=plan.total_steps,
        output_dir=Path(config.output_dir),
        is_main=accelerator.is_main_process,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )


def _scheduler(optimizer: Optimizer, new_groups: int, request: Request) -> Any:
    """Return the learning-rate scheduler, created after the objective's groups were added to the optimizer."""
    return make_scheduler(
        optimizer,
        new_groups=new_groups,
        scheduler_class=request.scheduler_class,
        scheduler_args=request.scheduler_args,
        scheduler=request.scheduler,
    )


def _prepared(accelerator: Accelerator, pair: TrainingModule, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """Wrap model and optimizer with accelerate; the optimizer only if needed, such as to skip steps that overflowed."""
    if accelerator.is_fsdp2:
        from kdplug.engine.parallel.fsdp import shard_pair

        model, prepared = pair, shard_pair(accelerator, pair, optimizer)
    else:
        if accelerator.num_processes > 1:
            keep_buffers_apart(pair, pair.objective)
            equalize_buffers(pair.objective)
        model = accelerator.prepare_model(pair)
        prepared = optimizer if accelerator.device.type == "cpu" else accelerator.prepare_optimizer(optimizer)
    return model, optimizer if accelerator.scaler is None else prepared


def _configs(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key not in FINGERPRINTS}


def _precision(config: TrainingConfig) -> str | None:
    return config.precision if "precision" in config.model_fields_set else None


def _limit(max_grad_norm: float | None) -> float | None:
    return max_grad_norm if max_grad_norm is not None and max_grad_norm > 0 else None


def _trained(optimizer: Optimizer, pair: TrainingModule) -> list[nn.Parameter]:
    """Return each parameter that the optimizer holds or that requires a gradient, once."""
    wanted = [*parameters(optimizer), *(parameter for parameter in pair.parameters() if parameter.requires_grad)]
    return list({id(parameter): parameter for parameter in wanted}.values())


def _check_sides(pair: TrainingModule, teacher: TeacherSide | None) -> None:
    if teacher is None:
        return
    if teacher.model is pair.student:
        raise RunError(
            "teacher and student are the same module, so the student would train on its own outputs. Pass a copy "
            "(copy.deepcopy) as the teacher"
        )
    check_apart(teacher.model, pair.student, pair.objective)
