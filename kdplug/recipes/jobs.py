"""Train several students at the same time, in worker processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdplug.config.recipe import Recipe
from kdplug.contracts.task import StartsStudent
from kdplug.errors import RunError
from kdplug.recipes.arm import Arm, ArmRun
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.task import build_task, prepare, required_reads

if TYPE_CHECKING:
    from kdplug.engine.observe.progress import Display
    from kdplug.engine.run import Run
    from kdplug.objective.report import LossReport

_SECONDS_TO_STOP = 60.0


@dataclass(frozen=True, slots=True)
class Work:
    """The inputs of a worker process for any run, as plain data. ``teacher`` is the folder of a trained teacher."""

    recipe: dict[str, Any]
    identity: str
    teacher: Path
    is_cached: bool
    resume: bool
    resume_changed: bool
    threads: int


@dataclass(slots=True)
class Worker:
    """A worker process and the run that it trains. The process ends when the connection ``alive`` is closed."""

    process: SpawnProcess
    connection: Connection
    alive: Connection
    run: ArmRun | None = None

    @classmethod
    def start(cls, work: Work) -> Worker:
        """Start a worker."""
        context = get_context("spawn")
        (own, its), (alive, watched) = context.Pipe(), context.Pipe()
        process = context.Process(target=serve, args=(its, watched, work), name="kdplug worker", daemon=True)
        process.start()
        its.close()
        watched.close()
        return cls(process, own, alive)

    def begin(self, run: ArmRun) -> None:
        """Send the process a run to train."""
        self.run = run
        self.connection.send(run)

    def receive(self) -> tuple[str, Any]:
        """Return the next message: a kind and a value."""
        try:
            found: tuple[str, Any] = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return "died", f"its process ended with exit status {self.process.exitcode}"
        return found

    def stop(self) -> None:
        """Stop the process. If it is training, it writes a checkpoint first."""
        if self.run is not None:
            self.process.terminate()
        self.connection.close()
        self.process.join(_SECONDS_TO_STOP)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.alive.close()


class WorkerError(RunError):
    """An error in a worker process."""


def train_side_by_side(
    work: Work,
    runs: Sequence[ArmRun],
    *,
    jobs: int,
    say: Callable[[str], None],
    shown: Display,
    run_steps: int,
    ended: Callable[[ArmRun, WorkerError | None], None],
) -> None:
    """Train ``runs`` of ``run_steps`` steps each in at most ``jobs`` processes at the same time.

    ``ended`` is called for each run when it is complete, or with the error that ended it; an error that ``ended`` raises
    stops the other processes. Each process uses as many threads as this one, so the results are the same as without worker
    processes. All of them end if this process ends.
    """
    waiting, done = list(runs), dict.fromkeys(runs, 0)
    workers: list[Worker] = []
    try:
        workers += [Worker.start(work) for _ in range(min(jobs, len(runs)))]
        while True:
            for worker in workers:
                if worker.run is None and waiting:
                    worker.begin(waiting.pop(0))
            active = {worker.connection: worker for worker in workers if worker.run is not None}
            if not active:
                return
            for connection in wait(list(active)):
                worker = active[connection]  # type: ignore[index]
                kind, value = worker.receive()
                assert worker.run is not None
                if kind == "step":
                    done[worker.run] = value
                    shown.step(sum(done.values()))
                elif kind == "say":
                    say(value)
                else:
                    run, worker.run = worker.run, None
                    done[run] = run_steps
                    if kind == "died":
                        worker.stop()
                        workers[workers.index(worker)] = Worker.start(work)
                    ended(run, None if kind == "done" else WorkerError(value))
    finally:
        for worker in workers:
            worker.stop()


class _Steps:
    """Observer that sends each completed optimizer step."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._before = 0  # the steps of earlier stages

    def run_start(self, run: Run) -> None:
        self._connection.send(("step", self._before + run.step))

    def step_end(self, run: Run, step: int, report: LossReport) -> None:  # noqa: ARG002
        self._connection.send(("step", self._before + step))

    def run_end(self, run: Run, error: BaseException | None) -> None:  # noqa: ARG002
        self._before += run.step


def serve(connection: Connection, alive: Connection, work: Work) -> None:
    """Complete the runs that ``connection`` names, in a worker process. The results are in the folders of the runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process stops its workers
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    torch.set_num_threads(work.threads)
    while True:
        try:
            run = connection.recv()
        except (EOFError, OSError):
            return
        try:
            _complete(connection, work, run)
        except Exception as error:
            connection.send(("error", f"{type(error).__name__}: {error}"))
        else:
            connection.send(("done", None))


def _complete(connection: Connection, work: Work, run: ArmRun) -> None:
    from kdplug.recipes.arms_run import complete
    from kdplug.recipes.stages.shared_cache import runs_teacher

    recipe = Recipe.from_dict(work.recipe)
    _, task = build_task(recipe)
    prepare(task, required_reads(recipe))
    runner = RecipeRunner(
        recipe,
        task,
        lambda text: connection.send(("say", text)),
        show_progress=False,
        resume=work.resume,
        resume_changed=work.resume_changed,
        observers=(_Steps(connection),),
    )
    starts = isinstance(task, StartsStudent) and task.starts_student
    is_live = run.arm is not Arm.NO_TEACHER and not work.is_cached and recipe.training.teacher_cache is None
    is_live |= run.arm is Arm.DISTILLED and runs_teacher(runner)
    teacher = runner.loaded_teacher(work.teacher) if starts or is_live else None
    complete(runner, run, teacher, work.identity, is_cached=work.is_cached)


def _end_with(alive: Connection) -> None:
    """End this process when its parent does."""
    try:
        alive.recv()
    except (EOFError, OSError):
        os._exit(1)
