"""Plugins that raise what is no ``Exception``, that take long, and users who press Ctrl-C meanwhile."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import typer
from fake_install import FakeSite
from small_run import make_batches, make_distiller, make_student, sgd, weights

import kdplug
from kdplug.cli.plugins import rows
from kdplug.cli.terminal import report_errors
from kdplug.config.schema.build import every_entry, schema_of
from kdplug.engine.checkpoint.preemption import preemption
from kdplug.errors import BrokenEntryError, KdplugError, PluginError, RunError, SignatureError
from kdplug.host.active import LifeCycle, isolated
from kdplug.host.check.check import check_plugins
from kdplug.host.host import PluginWarning
from kdplug.host.isolation import plugin_code
from kdplug.host.metadata import scan

RAISED = {
    "SystemExit": "raise SystemExit",
    "sys.exit(0)": "import sys; sys.exit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "CancelledError": "import asyncio; raise asyncio.CancelledError",
    "BaseException": "raise BaseException('base')",
    "an error without text": "raise type('E', (BaseException,), {'__str__': lambda self: 1 / 0})()",
    "recursion": "(lambda f: f(f))(lambda f: f(f))",
}
RAISING = pytest.mark.parametrize("code", RAISED.values(), ids=RAISED)
EXITS = pytest.mark.attack("a plugin raises SystemExit, KeyboardInterrupt or another BaseException")
CTRL_C = pytest.mark.attack("Ctrl-C while code of a plugin runs")
SLOW = pytest.mark.attack("a plugin that imports for long")

INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
LOSS = "def f(student_logits, teacher_logits): return 0\n"


def add_hooks(site: FakeSite, source: str) -> None:
    site.add("kdplug-bad", plugins={"hooks": "kdplug_bad"}, files={"kdplug_bad.py": source})


def add_loss(site: FakeSite, source: str) -> None:
    site.add("kdplug-bad", losses={"bad": "kdplug_bad:f"}, files={"kdplug_bad.py": source})


@EXITS
@RAISING
@pytest.mark.parametrize(
    "place", ["{}", "def kdplug_losses(): {}", "def __getattr__(name): {}\ndef __dir__(): return ['x']"]
)
def test_a_hook_plugin_that_no_config_names_costs_only_itself(fake_site: FakeSite, code: str, place: str) -> None:
    add_hooks(fake_site, place.format(code))
    fake_site.add(
        "kdplug-good",
        plugins={"hooks": "kdplug_good"},
        files={"kdplug_good.py": "def kdplug_losses(): return [('x', len)]"},
    )
    with fake_site.host() as host:
        with pytest.warns(
            PluginWarning,
            match="hook plugin 'kdplug-bad:hooks' .* To run without this plugin, set KDPLUG_PLUGINS=-kdplug-bad",
        ):
            assert kdplug.losses["x"] is len
        assert [plugin.error is None for plugin in host.hook_plugins] == [False, True]


@EXITS
@RAISING
@pytest.mark.parametrize("door", ["load", "build", "settings"])
def test_an_entry_costs_only_who_names_it(fake_site: FakeSite, code: str, door: str) -> None:
    add_loss(fake_site, code)
    with fake_site.host(), pytest.raises(BrokenEntryError, match=r"'kdplug-bad:bad' is installed but failed to load"):
        {
            "load": lambda: kdplug.losses.load("bad"),
            "build": lambda: kdplug.losses.build("bad"),
            "settings": lambda: kdplug.losses.entry("bad").settings,
        }[door]()


@EXITS
@RAISING
def test_a_check_a_list_and_a_schema_go_on_behind_it(
    fake_site: FakeSite, code: str, recwarn: pytest.WarningsRecorder
) -> None:
    add_hooks(fake_site, code)
    fake_site.add("kdplug-worse", losses={"worse": "kdplug_worse:f"}, files={"kdplug_worse.py": code})
    with fake_site.host():
        found = {one.dist: one.check for one in check_plugins()}
        listed = {row.package: row.status for row in rows(load=True)}
        errors = schema_of("recipe", every_entry).errors
    assert found == {"kdplug-bad": "hook", "kdplug-worse": "broken"}
    assert listed == {"kdplug-bad": "broken", "kdplug-worse": "broken"}
    assert len(errors) == 1
    assert "'kdplug-worse:worse' is installed but failed to load" in errors[0]


SIGNATURES = {
    "annotation": "def run():\n    {}\ndef f(student_logits, *, a: 'run()' = 1): ...",
    "__signature__": (
        "class Made:\n    def __call__(self, student_logits): ...\n"
        "    @property\n    def __signature__(self):\n        {}\nf = Made()"
    ),
    "metaclass": (
        "class Meta(type):\n    def __getattr__(cls, name):\n        {}\n"
        "class f(metaclass=Meta):\n    def __init__(self, a: int = 1): ...\n"
    ),
    "settings": (
        "class Field:\n    @classmethod\n"
        "    def __get_pydantic_core_schema__(cls, *_):\n        {}\n"
        "def f(student_logits, *, a: Field = None): ...\n"
    ),
}


@EXITS
@pytest.mark.parametrize(
    ("code", "place"),
    [
        (code, place)
        for code in RAISED.values()
        for place in SIGNATURES.values()
        if (code, place)
        != (RAISED["recursion"], SIGNATURES["annotation"])  # an Exception there counts as no annotation
    ],
)
def test_reading_a_signature_raises_an_error_of_ours(fake_site: FakeSite, code: str, place: str) -> None:
    add_loss(fake_site, place.format(code))
    with fake_site.host(), pytest.raises(SignatureError, match="kdplug-bad"):
        _ = kdplug.losses.entry("bad").settings


@EXITS
@RAISING
def test_a_constructor_raises_an_error(fake_site: FakeSite, code: str) -> None:
    add_loss(fake_site, f"class f:\n    def __init__(self): {code}\n    def forward(self, student_logits): ...")
    with fake_site.host(), pytest.raises(Exception) as caught:  # noqa: PT011  one of its own where it raises one
        kdplug.losses.build("bad")
    assert isinstance(caught.value, (PluginError, RecursionError))
    assert "kdplug-bad:bad" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


@EXITS
@RAISING
def test_a_check_of_a_setting_raises_an_error(fake_site: FakeSite, code: str) -> None:
    source = f"""
        import pydantic

        def checked(value):
            {code}

        class f:
            class Settings(pydantic.BaseModel):
                a: pydantic.BaseModel | int = 1
                _ = pydantic.field_validator("a")(checked)

            def __init__(self, a=1): ...

            def forward(self, student_logits): ...
    """
    add_loss(fake_site, source)
    with fake_site.host(), pytest.raises(KdplugError, match="kdplug-bad"):
        kdplug.losses.build(["bad", 2])


@EXITS
@RAISING
@pytest.mark.parametrize("hook", ["kdplug_run_start", "kdplug_step_end", "kdplug_run_end"])
def test_a_hook_ends_no_run(fake_site: FakeSite, tmp_path: Path, code: str, hook: str) -> None:
    add_hooks(fake_site, f"def {hook}(): {code}")
    student = make_student()
    with isolated(scan()), pytest.warns(PluginWarning, match=f"plugin 'kdplug-bad:hooks' raised in {hook}"):
        result = make_distiller(tmp_path, student).train(sgd(student), make_batches(2), num_epochs=1)
    assert result.step == 2
    assert not torch.equal(weights(student), weights(make_student()))


@EXITS
@pytest.mark.parametrize("code", ["exit()", "exit(0)", "exit(3)", "exit('bye')", "raise SystemExit"])
def test_a_command_fails_where_code_that_a_run_calls_wants_to_end_it(code: str) -> None:
    """A loss that ends the program while it is called: the status is not 0, and the message names the place."""
    with pytest.raises(typer.Exit) as ended, report_errors():
        exec(compile(f"from sys import exit\n{code}", "kdplug_bad.py", "exec"))
    assert ended.value.exit_code == 2
    with pytest.raises(RunError, match=r"kdplug_bad.py:2 called exit\("), report_errors(debug=True):
        exec(compile(f"from sys import exit\n{code}", "kdplug_bad.py", "exec"))


@CTRL_C
def test_a_command_that_a_signal_ended_keeps_its_status() -> None:
    with pytest.raises(SystemExit, match="143"), report_errors():
        raise SystemExit(128 + signal.SIGTERM)


@CTRL_C
@pytest.mark.parametrize(
    "source",
    [
        INTERRUPT,
        f"try:\n    {INTERRUPT}\nexcept BaseException: pass",
        f"try:\n    {INTERRUPT}\nexcept BaseException: raise ImportError('hidden')",
        f"try:\n    {INTERRUPT}\nexcept BaseException: raise SystemExit(0)",
        f"try:\n    {INTERRUPT}\nfinally: raise OSError",
    ],
    ids=["plain", "swallowed", "as ImportError", "as SystemExit", "in finally"],
)
@pytest.mark.parametrize("door", ["entry", "hooks", "offer", "run_start", "build", "annotation"])
def test_an_interrupt_of_the_user_ends_the_program_whatever_the_plugin_makes_of_it(
    fake_site: FakeSite, source: str, door: str
) -> None:
    inside = source.replace("\n", "\n    ")
    text = {
        "entry": f"{source}\n{LOSS}",
        "hooks": source,
        "offer": f"def kdplug_losses():\n    {inside}\n    return []",
        "run_start": f"def kdplug_run_start():\n    {inside}",
        "build": f"def make():\n    {inside}\nclass f:\n    def __init__(self): make()\n    def forward(self): ...",
        "annotation": f"def make():\n    {inside}\ndef f(*, a: 'make()' = 1): ...",
    }[door]
    is_loss = door in ("entry", "build", "annotation")
    (add_loss if is_loss else add_hooks)(fake_site, text)
    with fake_site.host(), pytest.raises(KeyboardInterrupt):
        kdplug.losses.build("bad") if is_loss else LifeCycle().run_start("run")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@CTRL_C
def test_what_a_handler_of_the_user_raises_ends_the_program_too(fake_site: FakeSite) -> None:
    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    add_hooks(fake_site, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    before = signal.signal(signal.SIGTERM, leave)
    try:
        with fake_site.host() as host, pytest.raises(SystemExit):
            host.load_hooks()
        assert signal.getsignal(signal.SIGTERM) is leave
    finally:
        signal.signal(signal.SIGTERM, before)


@CTRL_C
def test_a_signal_that_a_run_only_notes_is_noted(fake_site: FakeSite) -> None:
    """A run saves and ends after the step at hand, and takes the handlers of before for a second signal."""
    add_hooks(fake_site, INTERRUPT)
    with preemption() as heard, fake_site.host() as host:
        host.load_hooks()
        assert host.problems == []
        assert heard.signal == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@CTRL_C
def test_in_another_thread_an_interrupt_is_the_plugins_own(fake_site: FakeSite) -> None:
    add_loss(fake_site, "raise KeyboardInterrupt")
    raised: list[BaseException] = []

    def load() -> None:
        try:
            kdplug.losses.load("bad")
        except BaseException as error:
            raised.append(error)

    with fake_site.host():
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
    assert isinstance(raised[0], BrokenEntryError)


@CTRL_C
def test_the_key_itself_ends_a_program_that_imports_a_plugin(fake_site: FakeSite) -> None:
    source = "import time\nprint('importing', flush=True)\ntry:\n    time.sleep(60)\nexcept BaseException: pass\n"
    add_hooks(fake_site, source)
    program = subprocess.Popen(
        [sys.executable, "-c", "import kdplug\nkdplug.host.active.active().load_hooks()\nprint('goes on')"],
        env={**os.environ, "PYTHONPATH": str(fake_site.folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "importing\n"
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=60)
    finally:
        program.kill()
    assert (program.returncode, out) == (-signal.SIGINT, "")
    assert err.endswith("KeyboardInterrupt\n")


WAITS = """
import sys, time
end = time.monotonic() + 5
while "so far" not in sys.stderr.getvalue() and time.monotonic() < end:
    time.sleep(0.01)
named = "so far" in sys.stderr.getvalue()
"""


@SLOW
@pytest.mark.parametrize("door", ["entry", "hooks"])
def test_a_slow_import_is_named_while_it_runs(fake_site: FakeSite, monkeypatch: pytest.MonkeyPatch, door: str) -> None:
    monkeypatch.setattr(plugin_code, "SLOW_SECONDS", 0.05)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    (add_loss if door == "entry" else add_hooks)(fake_site, WAITS + LOSS)
    with fake_site.host() as host:
        kdplug.losses.load("bad") if door == "entry" else host.load_hooks()
    assert sys.modules["kdplug_bad"].named
    assert sys.stderr.getvalue().startswith("kdplug: importing ")
    assert sys.stderr.getvalue().endswith(
        "has taken 0.05 s so far. To run without this plugin, set KDPLUG_PLUGINS=-kdplug-bad\n"
    )


@SLOW
def test_a_quick_import_is_not_named_and_leaves_no_thread(
    fake_site: FakeSite, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plugin_code.SLOW_SECONDS == 10
    before = threading.active_count()
    add_loss(fake_site, LOSS)
    with fake_site.host():
        kdplug.losses.load("bad")
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert capsys.readouterr() == ("", "")


@SLOW
def test_only_the_first_process_of_a_run_names_a_slow_import(
    fake_site: FakeSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plugin_code, "SLOW_SECONDS", 0.0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    add_loss(fake_site, f"import time; time.sleep(0.1)\n{LOSS}")
    with fake_site.host():
        kdplug.losses.load("bad")
    assert capsys.readouterr().err == ""
