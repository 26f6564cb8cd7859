"""Plugins that change the state of the process: when they are imported, built, read or called."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import re
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_install import FakeSite
from small_run import make_batches, make_distiller, make_student, sgd, weights
from typer.testing import CliRunner

import kdplug
from kdplug.cli.app import app
from kdplug.host.active import LifeCycle, isolated
from kdplug.host.host import PluginWarning
from kdplug.host.metadata import scan

ATTACK = pytest.mark.attack("a plugin changes global state")


@dataclass(frozen=True)
class Effect:
    """Code that changes global state, what it changes, and the name of that in the warning."""

    code: str
    read: Callable[[], Any]
    name: str


def numpy_state() -> bytes:
    return np.random.get_state()[1].tobytes()  # noqa: NPY002  the one that plugins seed


ARITHMETIC = {
    "grad": Effect("torch.set_grad_enabled(False)", torch.is_grad_enabled, "torch's grad mode"),
    "inference": Effect(
        "globals()['kept'] = torch.inference_mode(); kept.__enter__()", torch.is_inference_mode_enabled, "torch's inference mode"
    ),
    "dtype": Effect("torch.set_default_dtype(torch.float64)", torch.get_default_dtype, "torch's default dtype"),
    "device": Effect("torch.set_default_device('meta')", lambda: torch.empty(0).device, "torch's default device"),
    "device block": Effect(
        "torch.device('meta').__enter__()", lambda: torch.empty(0).device, "torch's function modes"
    ),
    "dispatch": Effect(
        "from torch.utils._python_dispatch import TorchDispatchMode; TorchDispatchMode().__enter__()",
        torch._C._len_torch_dispatch_stack,
        "torch's dispatch modes",
    ),
    "deterministic": Effect(
        "torch.use_deterministic_algorithms(True, warn_only=True)",
        torch.are_deterministic_algorithms_enabled,
        "torch's deterministic algorithms",
    ),
    "anomaly": Effect("torch.autograd.set_detect_anomaly(True)", torch.is_anomaly_enabled, "torch's anomaly detection"),
    "autocast": Effect(
        "torch.autocast('cpu', torch.bfloat16).__enter__()",
        lambda: (torch.is_autocast_enabled("cpu"), torch.autocast_increment_nesting() - torch.autocast_decrement_nesting()),
        "torch's autocast",
    ),
    "tf32": Effect(
        "torch.set_float32_matmul_precision('medium')",
        torch.get_float32_matmul_precision,
        "torch's float32 matmul precision",
    ),
    "cudnn": Effect(
        "torch.backends.cudnn.benchmark = True",
        lambda: torch.backends.cudnn.benchmark,
        "torch.backends.cudnn.benchmark",
    ),
    "threads": Effect(
        "torch.set_num_threads(torch.get_num_threads() + 1)", torch.get_num_threads, "torch's number of threads"
    ),
    "denormals": Effect(
        "torch.set_flush_denormal(True)", lambda: sys.float_info.min / 2, "flushing of denormal numbers"
    ),
}  # fmt: skip

SEEDS = {
    "python seed": Effect("random.seed(271828)", random.getstate, "Python's random generator"),
    "numpy seed": Effect("np.random.seed(271828)", numpy_state, "numpy's random generator"),
    "torch seed": Effect(
        "torch.manual_seed(271828)", lambda: torch.get_rng_state().tolist(), "torch's random generator"
    ),
}

DRAWS = {
    "python draw": Effect("random.random()", random.getstate, "Python's random generator"),
    "numpy draw": Effect("np.random.rand(2000)", numpy_state, "numpy's random generator"),
    "torch draw": Effect("torch.rand(3)", lambda: torch.get_rng_state().tolist(), "torch's random generator"),
}

PROCESS = {
    "folder": Effect("os.chdir('/')", os.getcwd, "the working directory"),
    "devices": Effect(
        "os.environ['CUDA_VISIBLE_DEVICES'] = ''",
        lambda: os.environ.get("CUDA_VISIBLE_DEVICES"),
        "environment variables of devices or processes",
    ),
    "switch": Effect(
        "os.environ['KDPLUG_STRICT'] = '1'",
        lambda: os.environ.get("KDPLUG_STRICT"),
        "environment variables of devices or processes",
    ),
    "silence": Effect("warnings.simplefilter('ignore')", lambda: list(warnings.filters), "warning filters"),
    "no filters": Effect("warnings.resetwarnings()", lambda: list(warnings.filters), "warning filters"),
    "stderr": Effect("sys.stderr = io.StringIO()", lambda: sys.stderr, "sys.stderr"),
    "logging": Effect("logging.disable(50)", lambda: logging.root.manager.disable, "logging.disable"),
    "recursion": Effect("sys.setrecursionlimit(300)", sys.getrecursionlimit, "the recursion limit"),
    "start method": Effect(
        "multiprocessing.set_start_method('spawn', force=True)",
        multiprocessing.get_start_method,
        "the start method of multiprocessing",
    ),
    "errors": Effect("sys.excepthook = lambda *_: None", lambda: sys.excepthook, "sys.excepthook"),
    "Ctrl-C": Effect(
        "signal.signal(signal.SIGINT, signal.SIG_IGN)", lambda: signal.getsignal(signal.SIGINT), "signal handlers"
    ),
    "module hooks": Effect(
        "torch.nn.modules.module.register_module_forward_hook(lambda *_: 0)",
        lambda: list(torch.nn.modules.module._global_forward_hooks),
        "torch's hooks on every module",
    ),
}

IMPORTS = "import io, logging, multiprocessing, os, random, signal, sys, warnings\nimport numpy as np\nimport torch\n"
LOSS = "def loss(student_logits, teacher_logits): return 0\n"


def install(site: FakeSite, source: str, **offers: dict[str, str]) -> None:
    site.add("kdplug-noisy", files={"kdplug_noisy.py": IMPORTS + source}, **offers)


def load_entry(site: FakeSite, code: str) -> None:
    install(site, f"{code}\n{LOSS}", losses={"noisy": "kdplug_noisy:loss"})
    with site.host():
        kdplug.losses.load("noisy")


def load_lazily(site: FakeSite, code: str) -> None:
    install(site, f"def __getattr__(name):\n    {code}\n    return len\n", losses={"noisy": "kdplug_noisy:late"})
    with site.host():
        kdplug.losses.load("noisy")


def load_hooks(site: FakeSite, code: str) -> None:
    install(site, code, plugins={"hooks": "kdplug_noisy"})
    with site.host() as host:
        host.load_hooks()


def offer(site: FakeSite, code: str) -> None:
    install(site, f"def kdplug_losses():\n    {code}\n    return []\n", plugins={"hooks": "kdplug_noisy"})
    with site.host() as host:
        host.load_hooks()


def read_settings(site: FakeSite, code: str) -> None:
    source = f"def noise():\n    {code}\n    return int\ndef loss(student_logits, *, a: 'noise()' = 1): ...\n"
    install(site, source, losses={"noisy": "kdplug_noisy:loss"})
    with site.host():
        assert list(kdplug.losses.entry("noisy").settings.model_fields) == ["a"]


def start_run(site: FakeSite, code: str) -> None:
    install(site, f"def kdplug_run_start():\n    {code}\n", plugins={"hooks": "kdplug_noisy"})
    with site.host():
        LifeCycle().run_start("run")


def end_step(site: FakeSite, code: str) -> None:
    install(site, f"def kdplug_step_end():\n    {code}\n", plugins={"hooks": "kdplug_noisy"})
    with site.host():
        life_cycle = LifeCycle()
        for step in (1, 2):
            life_cycle.step_end("run", step, "report")


def build(site: FakeSite, code: str) -> None:
    source = (
        "class Loss(torch.nn.Module):\n"
        f"    def __init__(self, a: int = 1):\n        super().__init__()\n        {code}\n"
        "    def forward(self, student_logits): ...\n"
    )
    install(site, source, losses={"noisy": "kdplug_noisy:Loss"})
    with site.host():
        kdplug.losses.build("noisy")


def restores(site: FakeSite, effect: Effect, door: Callable[[FakeSite, str], None]) -> None:
    """Walk through ``door`` and find one warning that names the effect, and the state as before."""
    before = effect.read()
    with pytest.warns(PluginWarning, match=re.escape(effect.name)) as caught:
        door(site, effect.code)
    assert effect.read() == before
    (message,) = {str(warning.message) for warning in caught}
    assert "kdplug-noisy" in message
    assert "changed global state: " in message
    assert "(restored). To run without this plugin, set KDPLUG_PLUGINS=-kdplug-noisy" in message


AT_IMPORT = {**ARITHMETIC, **SEEDS, **PROCESS}
IN_A_RUN = {**ARITHMETIC, **SEEDS, **DRAWS}


@ATTACK
@pytest.mark.parametrize("door", [load_entry, load_hooks, load_lazily, offer])
@pytest.mark.parametrize("effect", AT_IMPORT.values(), ids=AT_IMPORT)
def test_what_an_import_changes_is_restored_and_named(fake_site: FakeSite, effect: Effect, door: Any) -> None:
    restores(fake_site, effect, door)


@ATTACK
@pytest.mark.parametrize("door", [load_entry, load_hooks])
@pytest.mark.parametrize("effect", DRAWS.values(), ids=DRAWS)
def test_what_an_import_draws_is_restored_in_silence(fake_site: FakeSite, effect: Effect, door: Any) -> None:
    """Libraries draw when they are imported, for the name of a file say: nobody has to mend that."""
    before = effect.read()
    door(fake_site, effect.code)
    assert effect.read() == before


@ATTACK
@pytest.mark.parametrize("door", [start_run, end_step])
@pytest.mark.parametrize("effect", IN_A_RUN.values(), ids=IN_A_RUN)
def test_what_a_hook_of_a_run_changes_is_restored_and_named(fake_site: FakeSite, effect: Effect, door: Any) -> None:
    restores(fake_site, effect, door)


@ATTACK
@pytest.mark.parametrize("effect", AT_IMPORT.values(), ids=AT_IMPORT)
def test_what_an_annotation_changes_is_restored_and_named(fake_site: FakeSite, effect: Effect) -> None:
    restores(fake_site, effect, read_settings)


@ATTACK
@pytest.mark.parametrize("effect", ARITHMETIC.values(), ids=ARITHMETIC)
def test_what_a_constructor_changes_is_restored_and_named(fake_site: FakeSite, effect: Effect) -> None:
    restores(fake_site, effect, build)


@ATTACK
@pytest.mark.parametrize("seeding", ["torch.manual_seed(0)", "torch.seed()", "torch.manual_seed(7)"])
def test_a_constructor_that_seeds_seeds_nobody_else(fake_site: FakeSite, seeding: str) -> None:
    torch.manual_seed(7)
    random.seed(7)
    before = (torch.get_rng_state().tolist(), random.getstate(), numpy_state())
    with pytest.warns(PluginWarning, match=r"building 'kdplug-noisy:noisy' from noisy .* torch's random generator"):
        build(fake_site, f"torch.rand(3); {seeding}; random.seed(0); np.random.seed(0); torch.rand(3)")
    assert (torch.get_rng_state().tolist(), random.getstate(), numpy_state()) == before


@ATTACK
def test_a_constructor_may_draw_and_may_seed_a_generator_of_its_own(fake_site: FakeSite) -> None:
    """The parameters of a loss come from the generator that the run seeds, each with numbers of its own."""
    torch.manual_seed(7)
    expected = [torch.rand(3).tolist(), torch.rand(3).tolist()]
    torch.manual_seed(7)
    torch.found = []
    build(fake_site, "torch.found.append(torch.rand(3).tolist())")
    assert [*torch.found, torch.rand(3).tolist()] == expected
    fake_site.forget_modules()
    build(fake_site, "torch.random.fork_rng().__enter__(); torch.Generator().manual_seed(3)")
    fake_site.forget_modules()
    forked = "with torch.random.fork_rng(): torch.manual_seed(0); torch.rand(3)"
    build(fake_site, forked)
    del torch.found


FIRST = """
    import sys, kdplug, warnings
    assert "torch" not in sys.modules
    kdplug.losses.load("kdplug-noisy:noisy")
    import torch
    print(
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.empty(0).device, torch.is_anomaly_enabled(),
        torch.is_autocast_enabled("cpu"), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
        torch.is_inference_mode_enabled(), torch.initial_seed() == 0, random.random() == 0.8444218515250481,
    )
"""


@ATTACK
def test_a_plugin_that_imports_torch_first_leaves_its_defaults(fake_site: FakeSite) -> None:
    keys = ("grad", "dtype", "device", "anomaly", "autocast", "deterministic", "cudnn", "inference")
    source = "\n".join([*(ARITHMETIC[key].code for key in keys), "torch.manual_seed(0)\nrandom.seed(0)", LOSS])
    install(fake_site, source, losses={"noisy": "kdplug_noisy:loss"})
    done = fake_site.python(FIRST.replace("warnings", "warnings, random"))
    assert done.stdout == "True torch.float32 cpu False False False False False False False\n", done.stderr
    assert [key for key in keys if ARITHMETIC[key].name not in done.stderr] == [], done.stderr


@ATTACK
def test_a_plugin_that_imports_torch_first_and_changes_nothing_is_not_reported(fake_site: FakeSite) -> None:
    install(fake_site, f"import torch.nn, numpy.random\n{LOSS}", losses={"noisy": "kdplug_noisy:loss"})
    done = fake_site.python("import kdplug\nkdplug.losses.build('kdplug-noisy:noisy')")
    assert done.returncode == 0
    assert "changed global state" not in done.stderr  # on a busy machine it says that importing torch takes long


@ATTACK
def test_restoring_state_imports_neither_torch_nor_numpy(fake_site: FakeSite) -> None:
    files = {"kdplug_noisy.py": f"def kdplug_run_start(): ...\n{LOSS}"}
    fake_site.add("kdplug-noisy", files=files, losses={"noisy": "kdplug_noisy:loss"}, plugins={"hooks": "kdplug_noisy"})
    code = """
        import sys, kdplug
        kdplug.losses.load("kdplug-noisy:noisy")
        kdplug.host.active.active().load_hooks()
        print({"torch", "numpy", "pydantic", "multiprocessing"} & set(sys.modules))
    """
    assert fake_site.prints(code) == "set()"


def trained(folder: Path) -> tuple[Any, ...]:
    """The weights of a student with dropout, and what each generator draws after the run."""
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    student = make_student(dropout=0.5)
    with isolated(scan()):
        make_distiller(folder, student).train(sgd(student), make_batches(4), num_epochs=2)
    return weights(student).tolist(), random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


SEEDING = "torch.manual_seed(0); random.seed(0); np.random.seed(0); torch.rand(5); random.random(); np.random.rand()"
SWITCHING = (
    "torch.set_grad_enabled(False); torch.set_default_dtype(torch.float16); torch.use_deterministic_algorithms(True)"
)
NOISY_HOOKS = f"""
def noise(): {SEEDING}; {SWITCHING}
noise()
def kdplug_losses(): noise(); return []
def kdplug_run_start(): noise()
def kdplug_step_end(): noise()
def kdplug_run_end(): noise()
"""


@ATTACK
@pytest.mark.filterwarnings("ignore::kdplug.host.host.PluginWarning")
def test_a_run_has_the_same_bits_with_and_without_a_noisy_plugin(fake_site: FakeSite, tmp_path: Path) -> None:
    without = trained(tmp_path / "without")
    install(fake_site, NOISY_HOOKS, plugins={"hooks": "kdplug_noisy"})
    assert trained(tmp_path / "with") == without
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert sys.modules["kdplug_noisy"]


@ATTACK
@pytest.mark.filterwarnings("default::kdplug.host.host.PluginWarning")
@pytest.mark.parametrize("command", ["list --load", "check", "show noisy", "schema"])
def test_every_command_that_imports_plugins_leaves_the_process_as_it_was(fake_site: FakeSite, command: str) -> None:
    source = f"def noise():\n    {SEEDING}; {SWITCHING}; return int\nnoise()\ndef loss(student_logits, *, a: 'noise()' = 1): ..."
    install(fake_site, source, losses={"noisy": "kdplug_noisy:loss"})
    before = (torch.get_rng_state().tolist(), random.getstate(), numpy_state())
    with fake_site.host():
        words = command.split() if command == "schema" else ["plugins", *command.split()]
        done = CliRunner().invoke(app, words)
    assert done.exit_code in (0, 1), done.output
    assert (torch.get_rng_state().tolist(), random.getstate(), numpy_state()) == before
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    said = done.output if command == "check" else done.stderr
    assert "importing 'kdplug-noisy:noisy'" in said
    assert "torch's grad mode" in said


@ATTACK
def test_a_plugin_that_only_seeds_cuda_seeds_nothing(fake_site: FakeSite) -> None:
    """Without CUDA the seed waits until CUDA starts, and would seed the run then."""
    torch.manual_seed(7)
    before = dict(vars(torch.cuda._lazy_seed_tracker))
    load_hooks(fake_site, "torch.cuda.manual_seed_all(0); torch.cuda.manual_seed(0)")
    assert vars(torch.cuda._lazy_seed_tracker) == before
    assert before["call_order"]
