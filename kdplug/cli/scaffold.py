"""A new plugin project, as the text of its files."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from types import MappingProxyType
from typing import NamedTuple

import kdplug
from kdplug.errors import ConfigError, did_you_mean
from kdplug.host.kind import HOOK_GROUP, KINDS
from kdplug.host.name import is_entry_name

_DISTRIBUTION = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", re.IGNORECASE | re.ASCII)
_PLACE = re.compile(r"\{\{(\w+)\}\}")

LICENSES = ("Apache-2.0", "MIT", "BSD-3-Clause", "none")


class Scaffold(NamedTuple):
    """What sets the project of one kind apart: its templates, its entry-point group, and what its README says."""

    folder: str
    group: str
    noun: str
    summary: str
    needs: tuple[str, ...]
    is_class: bool = False


_KDPLUG, _TORCH, _PYDANTIC = "kdplug", "torch>=2.6", "pydantic>=2.9,<3"

SCAFFOLDS: Mapping[str, Scaffold] = MappingProxyType(
    {
        "loss": Scaffold(
            "loss_on_logits",
            "kdplug.losses",
            "loss",
            "A kdplug loss: KL divergence over the items of which the teacher is sure.",
            (_KDPLUG, _TORCH, _PYDANTIC),
        ),
        "loss on features": Scaffold(
            "loss_on_features",
            "kdplug.losses",
            "loss",
            "A kdplug loss: Huber distance between hidden states.",
            (_KDPLUG, _TORCH, _PYDANTIC),
        ),
        "projection": Scaffold(
            "projection",
            "kdplug.projections",
            "projection",
            "A kdplug projection: two layers from the student's width to the teacher's.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
        ),
        "weight_scheduler": Scaffold(
            "weight_scheduler",
            "kdplug.weight_schedulers",
            "weight scheduler",
            "A kdplug weight scheduler: half a cosine.",
            (_KDPLUG, _PYDANTIC),
        ),
        "temperature_scheduler": Scaffold(
            "temperature_scheduler",
            "kdplug.temperature_schedulers",
            "temperature scheduler",
            "A kdplug temperature scheduler: the surer the teacher, the softer.",
            (_KDPLUG, _TORCH, _PYDANTIC),
        ),
        "task": Scaffold(
            "task",
            "kdplug.tasks",
            "task",
            "A kdplug task: spiral arms in the plane.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
        ),
        "hooks": Scaffold("hooks", HOOK_GROUP, "hooks", "A kdplug plugin that says how long a run took.", (_KDPLUG,)),
    }
)
"""Every kind of project, by the word that ``--kind`` takes; a loss on features is a loss under ``--on features``."""


@dataclass(frozen=True, slots=True)
class Project:
    """A project that is to be written: its names, and path to text."""

    dist: str
    module: str
    entry: str
    scaffold: Scaffold
    texts: Mapping[str, str]


def read_scaffold(kind: str, on: str | None = None) -> Scaffold:
    """What ``--kind`` and ``--on`` mean: ``loss`` or ``losses``, ``weight-scheduler`` or ``weight_schedulers``, …

    Raises: ``ConfigError`` with the nearest kind.
    """
    words = [word for word in SCAFFOLDS if " " not in word]
    spellings = {spelling: word for word in words for spelling in (word, word.rstrip("s"))}
    spellings |= {kind.plural: kind.noun.replace(" ", "_") for kind in KINDS.values()}
    folded = kind.casefold().replace("-", "_").replace(" ", "_")
    if folded not in spellings:
        raise ConfigError(
            f"no kind {kind!r}.{did_you_mean(kind, spellings)} The kinds: {', '.join(words)}", field="--kind"
        )
    word = spellings[folded]
    if on is not None and on not in ("logits", "features"):
        raise ConfigError(f"must be 'logits' or 'features', got {on!r}", field="--on")
    if on is not None and word != "loss":
        raise ConfigError(f"says what a loss compares, and this is no loss but a {word.replace('_', ' ')}", field="--on")
    return SCAFFOLDS["loss on features" if on == "features" else word]


def read_license(name: str) -> str:
    """The license that ``name`` means, whatever its case.

    Raises: ``ConfigError`` with the nearest one.
    """
    by_fold = {known.casefold(): known for known in LICENSES}
    if name.casefold() not in by_fold:
        raise ConfigError(
            f"no license {name!r}.{did_you_mean(name, LICENSES)} There are {', '.join(LICENSES)}", field="--license"
        )
    return by_fold[name.casefold()]


def names_of(dist: str) -> tuple[str, str]:
    """The module and the entry of a distribution: ``kdplug-my-loss`` gives ``kdplug_my_loss`` and ``my_loss``.

    Raises: ``ConfigError`` where ``dist`` may not name a distribution, or gives no module or entry name.
    """
    if not _DISTRIBUTION.fullmatch(dist):
        raise ConfigError(
            f"{dist!r} may not name a distribution: letters, digits, '-', '_' and '.', the first and the last a letter or "
            "a digit",
            field="NAME",
        )
    module = re.sub(r"[-_.]+", "_", dist).lower()
    if not module.isidentifier() or keyword.iskeyword(module):
        raise ConfigError(f"its module would be {module!r}, which Python cannot import. Try kdplug-{dist}", field="NAME")
    entry = module.removeprefix("kdplug_")
    assert is_entry_name(entry)
    return module, entry


def make_project(dist: str, scaffold: Scaffold, license_name: str, config_name: str | None = None) -> Project:
    """The files of a project; ``config_name`` is what a config has to write, where the bare name of the entry will not do.

    Raises: ``ConfigError`` where ``dist`` may not name a distribution.
    """
    module, entry = names_of(dist)
    values = {
        "dist": dist,
        "module": module,
        "entry": entry,
        "config_name": config_name or entry,
        "summary": scaffold.summary,
        "group": scaffold.group,
        "dependencies": ", ".join(f'"{_with_range(name)}"' for name in scaffold.needs),
        "year": str(datetime.now(UTC).year),
        "holder": f"the {dist} authors",
        **_callable_names(scaffold, module, entry),
        **_license_values(license_name),
        **_readme_values(scaffold, config_name or entry),
    }
    values["use"] = _filled(f"{scaffold.folder}/use.yaml", values).rstrip()
    texts = {name: _filled(f"project/{name.lstrip('.')}", values) for name in ("pyproject.toml", "README.md")}
    texts[f"{module}.py"] = _filled(f"{scaffold.folder}/module.py", values)
    texts[f"tests/test_{module.removeprefix('kdplug_')}.py"] = _filled(f"{scaffold.folder}/test.py", values)
    texts["recipe.yaml"] = _filled("project/recipe.yaml", values)
    texts[".gitignore"] = _filled("project/gitignore", values)
    if license_name != "none":
        texts["LICENSE"] = _filled(f"license/{license_name}", values)
    return Project(dist, module, entry, scaffold, texts)


def _callable_names(scaffold: Scaffold, module: str, entry: str) -> dict[str, str]:
    """Names for the function or class: the entry's, unless the templates or Python give it another meaning."""
    text = _template(f"{scaffold.folder}/module.py") + _template(f"{scaffold.folder}/test.py")
    taken = {*re.findall(r"\w+", text), *keyword.kwlist, *keyword.softkwlist, *dir(builtins), module}
    suffix = scaffold.noun.replace(" ", "_")
    function = re.sub(r"[-.]+", "_", entry)
    if function in taken or not function.isidentifier():
        function = f"{suffix}_{function}"
    cls = "".join(part.capitalize() for part in function.split("_"))
    if cls in taken:
        cls += scaffold.noun.title().replace(" ", "")
    names = {"function": function, "cls": cls}
    target = module if scaffold.group == HOOK_GROUP else f"{module}:{cls if scaffold.is_class else function}"
    return {**names, "target": target}


def _license_values(name: str) -> dict[str, str]:
    if name == "none":
        return {"license_lines": "", "license_include": ""}
    lines = f'license = "{name}"\nlicense-files = ["LICENSE"]\n'
    return {"license_lines": lines, "license_include": ', "/LICENSE"'}


def _readme_values(scaffold: Scaffold, config_name: str) -> dict[str, str]:
    if scaffold.group == HOOK_GROUP:
        return {"how_to_use": "Once installed it is told of every run, whatever the recipe:", "shown": ""}
    how = f"Once installed, the {scaffold.noun} has a name that any config or recipe may write:"
    return {"how_to_use": how, "shown": f" `kdplug plugins show {config_name}` says what it does."}


def _with_range(name: str) -> str:
    """A requirement; that on kdplug is the range within which plugins keep working."""
    if name != "kdplug":
        return name
    major, minor = (int(part) for part in kdplug.__version__.split(".")[:2])
    return f"kdplug>={major}.{minor},<{f'0.{minor + 1}' if major == 0 else major + 1}"


def _template(path: str) -> str:
    return (files("kdplug.cli") / "templates" / f"{path}.tmpl").read_text(encoding="utf-8")


def _filled(path: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda match: values[match[1]], _template(path))
