"""Hooks of a plugin that a config names: they change a run, keep their state, and stop it."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from acting_plugin import NAME, install, installed
from fake_install import FakeSite
from killer import Killed, Killer
from small_run import make_batches, make_distiller, make_student, sgd, weights

from kdplug import Evaluation
from kdplug.config.distillation import DistillationConfig
from kdplug.errors import KdplugError, PluginError, RunError, SignatureError
from kdplug.host.host import PluginWarning

ACTS = {"plugins": {"hooks": [NAME]}}
TESTS = Path(__file__).parents[1]


@pytest.fixture
def site(fake_site: FakeSite):
    install(fake_site.folder)
    with installed():
        yield fake_site


@pytest.fixture
def plugin_of(fake_site: FakeSite):
    """Install one module with hooks, and return the config that names it."""
    with_host = []

    def make(source: str, target: str = "") -> dict:
        install(fake_site.folder, source, "kdplug-own", target)
        context = installed()
        context.__enter__()
        with_host.append(context)
        return {"plugins": {"hooks": ["kdplug-own"]}}

    yield make
    for context in with_host:
        context.__exit__(None, None, None)


def train(folder, *, killed_at=None, steps=6, resume=None, training=None, observers=(), evaluation=None, **config):
    torch.manual_seed(0)
    student = make_student(dropout=0.2)
    options = {"observers": [*observers, *([Killer(killed_at)] if killed_at else [])]}
    training = {"ckpt_steps": 1, "seed": 7, **(training or {})}
    distiller = make_distiller(folder, student, training=training, options=options, **config)
    result = distiller.train(
        sgd(student, momentum=0.9), make_batches(3), num_steps=steps, resume=resume, evaluation=evaluation
    )
    return weights(student), result


def test_a_named_plugin_acts_and_one_that_nobody_names_leaves_every_bit(tmp_path, fake_site):
    without, _ = train(tmp_path / "without")
    install(fake_site.folder)
    with installed():
        unnamed, _ = train(tmp_path / "unnamed")
        named, _ = train(tmp_path / "named", **ACTS)
    assert torch.equal(without, unnamed)
    assert not torch.equal(without, named)


@pytest.mark.usefixtures("site")
def test_a_run_that_is_named_twice_starts_twice_from_the_first_state(tmp_path):
    """The object is copied for each run: seeds and arms in one process do not share state."""
    assert torch.equal(train(tmp_path / "one", **ACTS)[0], train(tmp_path / "two", **ACTS)[0])


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_resumed_run_has_the_state_and_the_bits(tmp_path, step):
    whole, _ = train(tmp_path / "whole", **ACTS)
    with pytest.raises(Killed):
        train(tmp_path / "killed", killed_at=step + 1, **ACTS)
    resumed, _ = train(tmp_path / "killed", resume="auto", **ACTS)
    assert torch.equal(whole, resumed)


@pytest.mark.usefixtures("site")
def test_a_run_without_the_hooks_does_not_resume_one_with_them(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, killed_at=3, **ACTS)
    with pytest.raises(RunError, match=r"plugins\.hooks"):
        train(tmp_path, resume="auto")


STOPS = """
calls = []
def kdplug_step_end(run, step):
    calls.append(step)
    if step == 3:
        run.stop("seen enough")
"""


def test_a_hook_stops_a_run_with_a_checkpoint_and_an_evaluation(tmp_path, plugin_of):
    named, seen = plugin_of(STOPS), []
    evaluation = Evaluation(function=lambda _: {"step": seen.append(1) or len(seen)}, every=2, best="step")
    _, result = train(tmp_path, training={"ckpt_steps": 100}, evaluation=evaluation, **named)
    assert (result.step, result.stopped_early) == (3, True)
    assert result.stop_reason == "seen enough (kdplug-own:hooks)"
    assert result.best == tmp_path / "step-3"
    assert len(seen) == 2  # after step 2, which is due, and after the last one
    _, again = train(tmp_path, training={"ckpt_steps": 100}, evaluation=evaluation, resume="auto", **named)
    assert (again.step, again.stop_reason) == (3, "seen enough (kdplug-own:hooks)")


def test_an_observer_written_in_python_stops_a_run(tmp_path):
    class Stopper(Killer):
        def step_end(self, run, step, report):
            if step == self.step:
                run.stop("that will do")

    _, result = train(tmp_path, observers=[Stopper(2)])
    assert (result.step, result.stop_reason) == (2, "that will do")


def test_to_stop_at_the_last_step_is_to_end(tmp_path, plugin_of):
    _, result = train(tmp_path, steps=3, **plugin_of(STOPS))
    assert (result.step, result.stopped_early, result.stop_reason) == (3, False, None)


@pytest.mark.parametrize("what", ["model", "teacher", "objective", "optimizer", "stop"])
def test_a_hook_that_acts_without_being_named_is_refused_with_the_path_and_the_fix(tmp_path, plugin_of, what):
    alone, _ = train(tmp_path / "left alone")
    plugin_of(f"def kdplug_step_end(run):\n    run.{what}\n")
    with pytest.warns(PluginWarning) as caught:
        acted, _ = train(tmp_path / "acts")
    assert [str(one.message) for one in caught] == [
        (
            "plugin 'kdplug-own:hooks' raised in kdplug_step_end and is not called again in this run: PluginError: "
            f"plugins.hooks: run.{what} is available only to a plugin that the config names. Add kdplug-own to plugins.hooks: "
            "plugins: {hooks: [kdplug-own]}"
        )
    ]
    assert torch.equal(acted, alone)


def test_an_error_in_a_named_hook_ends_the_run(tmp_path, plugin_of):
    named = plugin_of("def kdplug_step_start(run):\n    if run.step == 2: raise ValueError('oh')\n")
    with pytest.raises(PluginError) as caught:
        train(tmp_path, **named)
    assert str(caught.value) == (
        "plugins.hooks: plugin 'kdplug-own:hooks' raised in kdplug_step_start: ValueError: oh. Fix it, or remove "
        "'kdplug-own' from plugins.hooks"
    )


def test_an_error_in_the_end_of_a_failed_run_does_not_replace_its_cause(tmp_path, plugin_of):
    named = plugin_of("def kdplug_run_end(run): raise ValueError('oh')\n")
    with pytest.warns(PluginWarning, match="oh"), pytest.raises(Killed):
        train(tmp_path, killed_at=2, **named)


@pytest.mark.parametrize(
    ("source", "target", "error", "message"),
    [
        ("def kdplug_losses(): return []\n", "", PluginError, "implements none of the hooks of a run"),
        ("raise ValueError('no')\n", "", PluginError, "failed to load: ValueError: no"),
        (
            "class P:\n    def kdplug_step_start(self): pass\n    def state_dict(self): return {}\np = P()\n",
            ":p",
            SignatureError,
            "has state_dict, but its state is saved only with both",
        ),
        (
            (
                "import threading\nclass P:\n    lock = None\n    def __init__(self): self.lock = threading.Lock()\n"
                "    def kdplug_step_start(self): pass\np = P()\n"
            ),
            ":p",
            PluginError,
            "cannot be copied",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::kdplug.host.host.PluginWarning")
def test_a_plugin_that_cannot_act_is_an_error_before_the_first_step(
    tmp_path, plugin_of, source, target, error, message
):
    with pytest.raises(error, match=message) as caught:
        train(tmp_path, **plugin_of(source, target))
    assert caught.value.field == "plugins.hooks"
    assert not tmp_path.joinpath("step-1").exists()


def test_a_name_without_hooks_is_an_error_of_the_config(site):
    site.add("kdplug-plain", losses={"plain": "kdplug_plain:plain"})
    with installed():
        for name, message in {
            "kdplug-average": "plugins.hooks.0: no plugin 'kdplug-average' is installed. Did you mean 'kdplug-averages'?",
            "kdplug-plain": "plugins.hooks.0: kdplug-plain 1.0 has no hooks (no entry point in kdplug.plugins). Plugins with "
            "hooks: kdplug-averages",
        }.items():
            with pytest.raises(KdplugError) as caught:
                DistillationConfig(plugins={"hooks": [name]})
            assert str(caught.value) == message
        with pytest.raises(KdplugError, match="more than once"):
            DistillationConfig(plugins={"hooks": [NAME, "Kdplug_Averages"]})
        assert DistillationConfig(plugins={"hooks": ["KDPLUG_averages"]}).plugins.hooks == (NAME,)


def test_what_a_hook_object_keeps_without_state_dict_is_said(tmp_path, plugin_of):
    named = plugin_of("class P:\n    def kdplug_step_end(self, step): self.seen = step\np = P()\n", ":p")
    with pytest.warns(PluginWarning, match="keeps seen, which checkpoints do not hold") as caught:
        train(tmp_path, **named)
    assert len(caught) == 1


@pytest.mark.usefixtures("site")
def test_a_named_plugin_is_called_by_name_only_once(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path, **ACTS)  # kdplug_step_end reads run.model, so that a second, observing call would warn


TWO = """
import sys
from pathlib import Path
import torch
from acting_plugin import install, installed
from small_run import *
from torch.utils.data import DataLoader

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
with installed():
    student = make_student()
    training = {"ckpt_steps": 100, "logging_steps": 50}
    distiller = make_distiller(folder / "run", student, training=training, plugins={"hooks": ["kdplug-own"]})
    result = distiller.train(sgd(student), DataLoader(torch.cat(make_batches(10)), batch_size=4), num_steps=20)
    rank = torch.distributed.get_rank()
    torch.save([result.step, result.stop_reason, weights(student)], folder / f"{rank}.pt")
"""


def test_a_stop_on_one_rank_ends_all_ranks_at_one_step(tmp_path):
    source = (
        "import os\ndef kdplug_step_end(run, step):\n    if step == 3 and os.environ['RANK'] == '1': run.stop('here')\n"
    )
    install(tmp_path, source, "kdplug-own", "")
    sys.path.remove(str(tmp_path))
    (tmp_path / "script.py").write_text(TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run(
        [*launch, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        timeout=150,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (one, why, of_one), (two, because, of_two) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert (one, two) == (3, 3)
    assert why == because == "here (kdplug-own:hooks)"
    assert torch.equal(of_one, of_two)
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-3"]
