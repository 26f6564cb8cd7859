"""Plugins that mean harm, or whose tools do: none of them costs more than the config that names it."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_install import FakeSite
from small_run import make_batches, make_distiller, make_student, sgd, weights
from typer.testing import CliRunner

import kdplug
from kdplug.cli.app import app
from kdplug.errors import AmbiguousEntryError, BrokenEntryError, KdplugError, NotInstalledError, PluginError
from kdplug.host.active import LifeCycle, isolated
from kdplug.host.check.check import check_plugins
from kdplug.host.host import PluginWarning
from kdplug.host.manifest import environment_record, header_line
from kdplug.host.metadata import scan

METADATA = pytest.mark.attack("a plugin with damaged or hostile metadata")
OBJECTS = pytest.mark.attack("a plugin changes the objects of a run")
MEANING = pytest.mark.attack("a plugin changes what a name means")
CODE = pytest.mark.attack("a plugin whose objects raise, loop or lie when they are looked at")
TERMINAL = pytest.mark.attack("a plugin sends control characters to the terminal")

GOOD = 'def f(student_logits, teacher_logits):\n    """Good."""\n    return 0\n'


@pytest.fixture(autouse=True)
def _forgets() -> Iterator[None]:
    """A module that replaces itself has no file, and the next test imports one of the same name."""
    yield
    sys.modules.pop("kdplug_bad", None)


def add_good(site: FakeSite) -> None:
    site.add("kdplug-good", losses={"good": "kdplug_good:f"}, files={"kdplug_good.py": GOOD})


def add_bad(site: FakeSite, source: str, **options: Any) -> Path:
    offers = {"losses": {"bad": "kdplug_bad:f"}} if "losses" not in options and "plugins" not in options else {}
    return site.add("kdplug-bad", files={"kdplug_bad.py": source}, **offers, **options)


def holds(site: FakeSite) -> None:
    """The other plugin is read, listed, recorded and checked."""
    with isolated(scan([str(site.folder)])):
        assert kdplug.losses["good"](1, 2) == 0
        assert "kdplug-good 1.0" in header_line()
        json.dumps(environment_record())
        assert not [finding for finding in check_plugins() if finding.dist == "kdplug-good"]
        for words in (["plugins", "list", "--load"], ["plugins", "list", "--json"], ["schema"], ["plugins", "check"]):
            done = CliRunner().invoke(app, words)
            assert done.exit_code in (0, 1), done.output
            assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)


@METADATA
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("METADATA", b""),
        ("METADATA", b"\xff\xfe\x00N"),
        ("METADATA", "Name: kdplug-bad\nVersion: 1\n".encode("utf-16")),
        ("METADATA", b"Name: kdplug-bad\n"),
        ("METADATA", b"Name: kdplug bad\x1b[2J\nVersion: 1.0\n"),
        ("METADATA", b"Name: a:b\nVersion: 1.0\n"),
        ("METADATA", b"Name: kdplug-bad\nVersion: \x1b[31m1.0\n"),
        ("METADATA", b"Name: kdplug-bad\nVersion: 1\nRequires-Dist: kdplug; os_name ~= 'x'\n"),
        ("METADATA", b"Name: kdplug-bad\nVersion: 1\nRequires-Dist: kdplug; dependency_groups == 'x'\n"),
        ("METADATA", b"Name: kdplug-bad\nVersion: 1\nRequires-Dist: kdplug =! 1\n"),
        ("entry_points.txt", b"[kdplug.losses]\n\xff = x\n"),
        ("entry_points.txt", b"[kdplug.losses\nbad = x\n[kdplug.losses]\n= x\nx =\n==\nbad = :\nworse = ..x:f\n"),
        ("entry_points.txt", b"[kdplug.losses]\nbad = a\x00b:f\n\x1b[2J = x:f\n[kdplug.plugins]\n\x1b[2J = \x1b[2J:x\n"),
        ("entry_points.txt", b"[kdplug.plugins]\na =\nb = :\nc = builtins:exit\nd = __main__:nothing\ne = antigravityy:x.y[z]\n"),
        ("RECORD", b"\xff\xfe"),
        ("RECORD", b'"' + b"x" * 200_000 + b'",,\n'),
        ("RECORD", b"a\x00b,,\n"),
        ("direct_url.json", b"\xff"),
        ("direct_url.json", b'{"dir_info": [1], "vcs_info": "x"}'),
        ("direct_url.json", b'{"dir_info": 3, "vcs_info": {"commit_id": {"a": 1}}}'),
        ("direct_url.json", b"[" * 100_000),
        ("direct_url.json", b'{"url": 3, "dir_info": {"editable": true}}'),
        ("direct_url.json", b'{"url": "file:///no/such", "dir_info": {"editable": true}}'),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::kdplug.host.host.PluginWarning")
def test_metadata_of_one_plugin_costs_no_other(fake_site: FakeSite, file: str, content: bytes) -> None:
    add_good(fake_site)
    (add_bad(fake_site, GOOD) / file).write_bytes(content)
    holds(fake_site)


@METADATA
@pytest.mark.parametrize("make", ["folder", "link to itself", "unreadable source"])
def test_files_that_cannot_be_read_cost_no_other(fake_site: FakeSite, make: str) -> None:
    add_good(fake_site)
    info = add_bad(fake_site, GOOD, direct_url={"url": "file:///x", "dir_info": {"editable": True}})
    if make == "folder":
        (info / "RECORD").unlink()
        (info / "RECORD").mkdir()
    elif make == "link to itself":
        (info / "METADATA").unlink()
        (info / "METADATA").symlink_to(info / "METADATA")
    else:
        (fake_site.folder / "kdplug_bad.py").unlink()
        (fake_site.folder / "kdplug_bad").mkdir()
        (fake_site.folder / "kdplug_bad" / "__init__.py").write_text(GOOD)
        (fake_site.folder / "kdplug_bad" / "data\udcff").write_text("")
    holds(fake_site)


LOOKED_AT = {
    "endless func": "class Endless:\n    def __getattr__(self, name): return self\n    def __call__(self): ...\nf = Endless()",
    "wrapper loop": f"{GOOD}f.__wrapped__ = f",
    "no __dict__": "class Slots:\n    __slots__ = ()\n    def __call__(self, student_logits): ...\nf = Slots()",
    "doc raises": (
        "class Meta(type):\n    @property\n    def __doc__(cls): raise SystemExit\n"
        "class f(metaclass=Meta):\n    def forward(self, student_logits): ..."
    ),
    "doc is no text": f"{GOOD}f.__doc__ = 3",
    "lying class": "class Lies:\n    __class__ = property(lambda self: 1 / 0)\n    def __call__(self): ...\nf = Lies()",
    "deletes itself": f"import sys\ndel sys.modules[__name__]\n{GOOD}",
    "replaces itself": "import sys\nsys.modules[__name__] = 3",
    "no spec": f"{GOOD}del __spec__",
    "module raises": "def __getattr__(name): raise SystemExit(name)",
    "circular": f"import kdplug\nkdplug.losses.load('kdplug-bad:bad')\n{GOOD}",
    "no json": (
        "import pydantic\nclass f:\n    class Settings(pydantic.BaseModel):\n"
        "        a: int = pydantic.Field(1, json_schema_extra={'x': {1, 2}})\n"
        "    def __init__(self, a=1): ...\n    def forward(self, student_logits): ..."
    ),
    "subclass refused": (
        "import pydantic\nclass Base(pydantic.BaseModel):\n    a: int = 1\n"
        "    def __init_subclass__(cls, **options):\n        if cls.__module__ != __name__ or options: raise SystemExit\n"
        "class f:\n    class Settings(Base): ...\n    def __init__(self, a=1): ...\n    def forward(self, student_logits): ..."
    ),
    "equals everything": "class Same:\n    def __eq__(self, other): return True\n    __hash__ = None\n    def __call__(self): ...\nf = Same()",
}  # fmt: skip


@CODE
@pytest.mark.parametrize("source", LOOKED_AT.values(), ids=LOOKED_AT)
@pytest.mark.filterwarnings("ignore::kdplug.host.host.PluginWarning")
def test_an_entry_that_raises_or_loops_when_it_is_looked_at_costs_no_other(fake_site: FakeSite, source: str) -> None:
    add_good(fake_site)
    add_bad(fake_site, source)
    holds(fake_site)
    with fake_site.host():
        done = CliRunner().invoke(app, ["plugins", "show", "bad"])
    assert isinstance(done.exception, (SystemExit, type(None))), repr(done.exception)


@CODE
def test_a_hook_plugin_that_equals_every_other_keeps_none_out(fake_site: FakeSite) -> None:
    source = "class Same:\n    def __eq__(self, other): return True\n    __hash__ = None\nplugin = Same()"
    fake_site.add("kdplug-a", plugins={"hooks": "kdplug_a:plugin"}, files={"kdplug_a.py": source})
    offers = "class Plugin:\n    def kdplug_losses(self): return [('x', len)]\nplugin = Plugin()"
    fake_site.add("kdplug-b", plugins={"hooks": "kdplug_b:plugin"}, files={"kdplug_b.py": offers})
    with fake_site.host():
        assert kdplug.losses["x"] is len


@CODE
@pytest.mark.filterwarnings("ignore:coroutine 'kdplug_losses' was never awaited:RuntimeWarning")
@pytest.mark.parametrize("target", ["kdplug_bad", "kdplug_bad:nothing"])
@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def kdplug_losses(): return [('a', len), (3, len)]\nnothing = None", "TypeError"),
        ("def kdplug_losses(): return [('a', len), ('b', 3)]\nnothing = None", "TypeError"),
        ("async def kdplug_losses(): return []\nnothing = None", "TypeError"),
    ],
)
def test_a_hook_plugin_that_offers_no_pairs_of_names_and_callables_offers_nothing(
    fake_site: FakeSite, source: str, told: str, target: str
) -> None:
    add_bad(fake_site, source, plugins={"hooks": target})
    with fake_site.host() as host, pytest.warns(PluginWarning, match=told):
        host.load_hooks()
    assert kdplug.host.active.active().entries["losses"].get("a") is None
    assert not host.entries["losses"]


@CODE
@pytest.mark.parametrize("source", ["async def kdplug_run_start(): ...", "def kdplug_step_end(step):\n    yield"])
def test_a_hook_that_never_runs_is_reported(fake_site: FakeSite, source: str) -> None:
    add_bad(fake_site, source, plugins={"hooks": "kdplug_bad"})
    with fake_site.host() as host, pytest.warns(PluginWarning, match="as a generator or coroutine, which never runs"):
        host.load_hooks()


REGISTERS = {
    "registry": "import kdplug\n@kdplug.losses.register('{name}')\ndef f(student_logits, teacher_logits): return 'bad'\n",
    "map": "import kdplug\nkdplug.KD_LOSS_MAP['{name}'] = lambda S, T, temperature: 'bad'\n",
}


@MEANING
@pytest.mark.parametrize("source", REGISTERS.values(), ids=REGISTERS)
@pytest.mark.parametrize("door", ["hooks", "entry", "hook"])
def test_what_a_plugin_registers_is_its_own_and_hides_no_first_party_name(
    fake_site: FakeSite, source: str, door: str
) -> None:
    text = source.format(name="ce")
    if door == "hook":
        text = "def kdplug_run_start():\n    " + text.replace("\n", "\n    ") + "\n"
    options = {"losses": {"other": "kdplug_bad:other"}} if door == "entry" else {"plugins": {"hooks": "kdplug_bad"}}
    add_bad(fake_site, text + "\ndef other(student_logits): ...\n", **options)
    with isolated(scan()) as host:
        if door == "entry":
            kdplug.losses.load("other")
        else:
            host.load_hooks()
            LifeCycle().run_start(SimpleNamespace())
        assert kdplug.losses.entry("ce").dist == "kdplug-presets"
        assert kdplug.losses.entry("kdplug-bad:ce", "kd").origin == "hook"


@MEANING
@pytest.mark.parametrize("source", REGISTERS.values(), ids=REGISTERS)
def test_what_a_plugin_registers_can_be_named_and_is_ambiguous_next_to_another(
    fake_site: FakeSite, source: str
) -> None:
    add_bad(fake_site, source.format(name="new"), plugins={"hooks": "kdplug_bad"})
    with fake_site.host() as host:
        host.load_hooks()
        assert kdplug.losses.build("new", "kd").target(1, 2, *([3] if "MAP" in source else [])) == "bad"
    fake_site.forget_modules()
    fake_site.add("kdplug-good", losses={"new": "kdplug_good:f"}, files={"kdplug_good.py": GOOD})
    with fake_site.host() as host:
        host.load_hooks()
        with pytest.raises(AmbiguousEntryError, match="kdplug-bad:new"):
            kdplug.losses.entry("new", "kd")


MUTATES = {
    "step": "run.step = 10 ** 9",
    "total_steps": "run.total_steps = 1",
    "output_dir": "run.output_dir = '/'",
    "freezes": "[p.requires_grad_(False) for p in run.model.parameters()]",
    "eval": "run.model.eval()",
    "optimizer": "run.optimizer.param_groups.clear()",
    "weight": "report.terms['kd_loss'].weight = 0.0",
    "total": "report.total.zero_()",
    "term": "next(iter(report.terms.values())).value.zero_()",
    "terms": "report.terms.clear()",
}


@OBJECTS
@pytest.mark.parametrize("code", MUTATES.values(), ids=MUTATES)
@pytest.mark.filterwarnings("ignore::kdplug.host.host.PluginWarning")
def test_a_hook_cannot_change_the_run_it_is_called_with(fake_site: FakeSite, tmp_path: Path, code: str) -> None:
    def run(folder: Path) -> tuple[Any, ...]:
        student = make_student()
        with isolated(scan()):
            result = make_distiller(folder, student).train(sgd(student), make_batches(3), num_epochs=1)
        logged = [
            json.loads(line)["terms"]
            for line in (folder / "log.jsonl").read_text().splitlines()[-1:]
            if "terms" in line
        ]
        return weights(student).tolist(), result.step, result.report.total.item(), student.training, logged

    without = run(tmp_path / "without")
    hook = "kdplug_step_end(run, report)" if "report" in code else "kdplug_run_start(run)"
    add_bad(fake_site, f"called = []\ndef {hook}:\n    called.append(1)\n    {code}\n", plugins={"hooks": "kdplug_bad"})
    assert run(tmp_path / "with") == without
    assert sys.modules["kdplug_bad"].called


@OBJECTS
def test_a_hook_sees_the_run_as_one_object_whose_step_goes_on(fake_site: FakeSite, tmp_path: Path) -> None:
    source = """
        seen = []
        def kdplug_run_start(run): seen.append((id(run), run.step, run.total_steps, run.progress, run.is_main))
        def kdplug_step_end(run, report): seen.append((id(run), run.step, float(report.total), sorted(report.terms)))
        def kdplug_run_end(run): seen.append((id(run), run.step, run.output_dir))
    """
    add_bad(fake_site, source, plugins={"hooks": "kdplug_bad"})
    student = make_student()
    with isolated(scan()):
        result = make_distiller(tmp_path, student).train(sgd(student), make_batches(2), num_epochs=1)
    seen = sys.modules["kdplug_bad"].seen
    assert len({one[0] for one in seen}) == 1
    assert [one[1] for one in seen] == [0, 1, 2, 2]
    assert seen[0][2:] == (2, 0.0, True)
    assert seen[2][2:] == (result.report.total.item(), sorted(result.report.terms))
    assert seen[3][2] == tmp_path


PATCHES = {
    "softmax": ("torch.nn.functional", "softmax"),
    "Module": ("torch.nn", "Module.__call__"),
    "Tensor": ("torch", "Tensor.backward"),
    "Objective": ("kdplug.objective.objective", "Objective.forward"),
    "function": ("kdplug.engine.train", "train"),
}


@OBJECTS
@pytest.mark.parametrize(("module", "path"), PATCHES.values(), ids=PATCHES)
def test_a_plugin_that_replaces_a_function_of_torch_or_kdplug_is_named(
    fake_site: FakeSite, monkeypatch: pytest.MonkeyPatch, module: str, path: str
) -> None:
    __import__(module)
    owner = sys.modules[module]
    *inside, name = path.split(".")
    for part in inside:
        owner = getattr(owner, part)
    monkeypatch.setattr(owner, name, getattr(owner, name))  # put back at the end
    source = f"import functools, {module}\nold = {module}.{path}\n{module}.{path} = functools.wraps(old)(lambda *a, **k: old(*a, **k))\n"
    add_bad(fake_site, source, plugins={"hooks": "kdplug_bad"})
    with fake_site.host() as host, pytest.warns(PluginWarning, match=rf"{re.escape(path)} \(not restored\)"):
        host.load_hooks()
    assert "changed global state: " in host.side_effects[0][1]
    fake_site.forget_modules()
    with fake_site.host(strict=True) as host, pytest.raises(PluginError, match=r"\(not restored\)"):
        host.load_hooks()


def said_by(command: str) -> str:
    done = CliRunner().invoke(app, command.split())
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.output + done.stderr


@TERMINAL
@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;owned\x07", "\x9b2J", "\r\x1b[1A", "\u202egnp", "\x00", "\ud800"])
def test_nothing_that_a_command_prints_of_a_plugin_moves_the_cursor(fake_site: FakeSite, text: str) -> None:
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "ignore") or "\x1b"
    quoted = repr(text)
    fake_site.add("kdplug-a", plugins={"hooks": "kdplug_a"}, files={"kdplug_a.py": f"raise OSError({quoted})"})
    fake_site.add("kdplug-b", losses={"b": "kdplug_b:f"}, files={"kdplug_b.py": f"raise OSError({quoted})"})
    source = f"def f(student_logits, *, a: str = {quoted}): ...\nf.__doc__ = {quoted}\n"
    info = fake_site.add("kdplug-c", losses={"c": "kdplug_c:f"}, files={"kdplug_c.py": source})
    (info / "METADATA").write_text(f"Name: kdplug-c\nVersion: 1{text}\n", newline="")
    (info / "entry_points.txt").write_text(f"[kdplug.losses]\nc = kdplug_c:f\nd{text} = x{text}:f\n[kdplug.plugins]\nh{text} = x{text}\n", newline="")  # fmt: skip
    commands = ["plugins list", "plugins list --load", "plugins check", "plugins show c", "plugins show b", "schema"]
    with pytest.warns(PluginWarning), fake_site.host():
        said = [said_by(command) for command in commands]
    assert not [one for one in "".join(said) if not one.isprintable() and one not in "\n\t"]


@CODE
def test_random_values_of_entry_points_cost_only_their_names(fake_site: FakeSite, attempts: Any) -> None:
    """What no author writes: values made of the characters that separate the parts of one."""
    draw = random.Random(0)
    values = ["".join(draw.choices("ab.:[] \t=#;/\\é\x01", k=draw.randrange(12))) for _ in range(200)]
    info = fake_site.add("kdplug-bad", losses={f"e{place}": value for place, value in enumerate(values)})
    assert info.exists()
    with fake_site.host():
        for name in kdplug.losses.names():
            try:
                kdplug.losses.load(name)
            except KdplugError as error:
                attempts.record(isinstance(error, (BrokenEntryError, NotInstalledError)))
            else:
                attempts.record(False)
    assert attempts.tried > 150
    assert attempts.held == attempts.tried
