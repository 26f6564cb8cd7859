"""Where in a model a tensor is read: a module's path, and what of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from kdplug.config.words import shown
from kdplug.errors import ConfigError, did_you_mean

Source = Literal["output", "input"]

_PATH = re.compile(r"(?P<modules>[^:@\s]+)(?:@(?P<call>-?\d{1,9}))?(?::(?P<source>\w*)(?P<steps>.*))?")
_STEP = re.compile(r"\[(-?\d{1,9})\]|\.([A-Za-z_]\w*)")
_EXAMPLE = "encoder.layer.3, encoder.layer.3:output[1], encoder.layer.3:input[0] or encoder:output.hidden_states[2]"


@dataclass(frozen=True, slots=True)
class LayerPath:
    """``encoder.layer.3@0:output[1].scores``, taken apart.

    ``modules`` is the dotted path of a module in its model, or a glob over such paths: ``*`` stands for any one part,
    ``**`` for any number of parts. ``call`` picks one of several calls in a forward pass. ``steps`` lead from the
    module's output, or its input, to a tensor; without any, a tuple's first tensor is meant.
    """

    modules: str
    call: int | None = None
    source: Source = "output"
    steps: tuple[int | str, ...] = ()

    def __str__(self) -> str:
        call = "" if self.call is None else f"@{self.call}"
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.steps)
        what = f":{self.source}{steps}" if steps or self.source != "output" else ""
        return f"{self.modules}{call}{what}"

    @property
    def is_glob(self) -> bool:
        """Whether it may stand for several modules."""
        return any(sign in self.modules for sign in "*?[")

    def matches(self, name: str) -> bool:
        """Whether ``name`` is a module that this path, or glob, means."""
        if not self.is_glob:
            return name == self.modules
        return _matches(self.modules.split("."), name.split("."))

    def on(self, module: str) -> LayerPath:
        """The same of one module, by its own path."""
        return replace(self, modules=module)


def read_path(text: str) -> LayerPath:
    """Take a module path apart. Whether a model has that module is not asked here.

    Raises: ``ConfigError``.
    """
    found = _PATH.fullmatch(text)
    if found is None or "" in found["modules"].split("."):
        raise ConfigError(f"cannot read {shown(text)} as the path of a module. Examples: {_EXAMPLE}")
    source, steps = found["source"], found["steps"] or ""
    if source is not None and source not in ("output", "input"):
        near = did_you_mean(source, ["output", "input"])
        raise ConfigError(f"{shown(text)}: after ':' stands output or input, got {shown(source)}.{near}".rstrip("."))
    if _STEP.sub("", steps):
        raise ConfigError(f"{shown(text)}: cannot read {shown(steps)}. Write [1] or .name after {source}")
    call = None if found["call"] is None else int(found["call"])
    taken = tuple(int(number) if number else name for number, name in _STEP.findall(steps))
    return LayerPath(found["modules"], call, "input" if source == "input" else "output", taken)


def _matches(pattern: list[str], name: list[str]) -> bool:
    """Whether the parts of a glob fit those of a path, in time proportional to the product of their numbers."""
    read = {0}  # how many parts of the name the pattern so far may stand for
    for part in pattern:
        if part == "**":
            read = set(range(min(read), len(name) + 1))
        else:
            read = {place + 1 for place in read if place < len(name) and fnmatchcase(name[place], part)}
        if not read:
            return False
    return len(name) in read
