"""The extras and parameters of student and teacher that a term lists in the config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kdplug.config.term import WRITTEN_AS_TERM
from kdplug.contracts.outputs import Outputs
from kdplug.contracts.vocabulary import EXTRAS
from kdplug.errors import ConfigError, OutputsError, RunError, did_you_mean
from kdplug.host.kind import NAMED
from kdplug.objective.capture.path import Modules, Side
from kdplug.objective.numerics import full, target
from kdplug.objective.teacher import Names, side

if TYPE_CHECKING:
    from kdplug.config.term import WrittenTerm
    from kdplug.objective.batch import Batch

_KEYS: Mapping[Side, str] = {"student": "reads_S", "teacher": "reads_T"}
_READ: Mapping[str, tuple[Side, str]] = {
    f"{owner}_{kind}": (owner, kind) for owner in _KEYS for kind in (EXTRAS, "parameters")
}
"""The side and the kind of each of ``NAMED``."""

_NAMED_BY: Mapping[str, tuple[tuple[str, ...], str]] = {
    EXTRAS: (("student_extras", "teacher_extras"), "values"),
    **{key: ((f"{owner}_parameters",), "fc:parameter.weight") for owner, key in _KEYS.items()},
}
"""The inputs that each key of a term names, and an example."""

Sources = Mapping[str, Callable[[], Tensor]]
"""Functions that return the tensor at each path."""


def read_extras(outputs: Outputs, names: tuple[str, ...], owner: str) -> dict[str, Tensor]:
    """Return the extras with these names. ``owner`` is ``student`` or a teacher.

    Raises: ``OutputsError`` for a name that its adaptor did not return.
    """
    given = outputs.extras or {}
    for name in names:
        if name not in given:
            there = f"only {', '.join(given)}" if given else "and no extras at all"
            raise OutputsError(
                f"the {owner} returned no extra {name!r}, {there}.{did_you_mean(name, given)} Return {name!r} from the "
                f"adaptor, under extras: {{'extras': {{{name!r}: …}}}}",
                field=EXTRAS,
            )
    return {name: given[name] for name in names}


def named_getters(holder: str) -> dict[str, Callable[[Any], dict[str, Tensor]]]:
    """Return a function for each of ``NAMED`` that reads it from a source with a ``batch``, whose attribute ``holder``
    has the ``NamedInputs``.
    """

    def getter(name: str) -> Callable[[Any], dict[str, Tensor]]:
        return lambda source: getattr(source, holder).named.read(name, source.batch)

    return {name: getter(name) for name in NAMED}


class NamedInputs:
    """Reads the extras and parameters that a term names, for the inputs that its loss requests.

    Parameters are looked up in the connected models at each use. A copy of the objective is not connected, since its
    terms would read the models of the original.

    Raises: ``ConfigError`` for a requested input that the term does not name, and for a name that its loss does not read.
    """

    def __init__(self, written: WrittenTerm, inputs: tuple[str, ...], owner: str) -> None:
        term = written.config
        self.extras = term.extras or ()
        self.paths: dict[Side, tuple[str, ...]] = {"student": term.reads_S or (), "teacher": term.reads_T or ()}
        self.inputs = tuple(name for name in inputs if name in NAMED)
        self._owner = owner
        self._teacher = "teacher"
        self._sources: dict[Side, Sources] = {}
        if self.inputs or self.extras or any(self.paths.values()):
            self._check(written)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_sources": {}}

    @property
    def reads_teacher(self) -> bool:
        """Return whether the loss requests extras or parameters of a teacher."""
        return any(_READ[name][0] == "teacher" for name in self.inputs)

    def extras_of(self, owner: Side) -> tuple[str, ...]:
        """Return the names of the extras that the loss reads of one side."""
        return self.extras if f"{owner}_extras" in self.inputs else ()

    def name_teacher(self, place: int, teachers: Names) -> None:
        """Set which teacher messages name."""
        self._teacher = side(teachers, place)

    def connect(self, student: Modules | None, teacher: Modules | None) -> None:
        """Find the parameters and buffers in both models; ``None`` leaves a side unchanged.

        Raises: ``ConfigError`` with the path's field.
        """
        for modules in (student, teacher):
            if modules is not None:
                self._sources[modules.side] = dict(self._found(modules))

    def connect_stored(self, tensors: Mapping[str, Tensor]) -> None:
        """Read the teacher's parameters from a cache, by path."""
        self._sources["teacher"] = {path: partial(tensors.__getitem__, path) for path in self.paths["teacher"]}

    def read(self, name: str, batch: Batch) -> dict[str, Tensor]:
        """Return the value of one of ``NAMED``: the teacher's detached, both in float32 or wider.

        Raises: ``OutputsError`` for a missing extra; ``RunError`` before ``connect``.
        """
        convert = full if _READ[name][0] == "student" else target
        return {key: convert(one) for key, one in self._raw(name, batch).items()}

    def student_tensors(self, batch: Batch) -> list[Tensor]:
        """Return the student's tensors that ``read`` returns and that can have a gradient."""
        names = [name for name in self.inputs if _READ[name][0] == "student"]
        return [one for name in names for one in self._raw(name, batch).values() if one.is_floating_point()]

    def any_tensor(self, batch: Batch) -> Tensor:
        """Return a tensor that the loss reads, for its device."""
        return next(one for name in self.inputs for one in self._raw(name, batch).values())

    def example_ids(self, batch: Batch) -> Tensor:
        """Return the examples' ids, on the device of what the loss reads, whose first axis need not be the examples.

        Raises: ``OutputsError`` if the batch has none.
        """
        return batch.ids_for(self._owner).to(self.any_tensor(batch).device, non_blocking=True)

    def _raw(self, name: str, batch: Batch) -> dict[str, Tensor]:
        owner, kind = _READ[name]
        if kind == EXTRAS:
            outputs = batch.student if owner == "student" else batch.teacher
            return read_extras(outputs, self.extras, owner if owner == "student" else self._teacher)
        sources = self._sources.get(owner)
        if sources is None:
            raise RunError(
                f"{self._owner} reads parameters of the {owner}, which is not connected: call objective.connect(student, "
                "teacher) with both models first. A distiller does this itself"
            )
        return {path: read() for path, read in sources.items()}

    def _found(self, modules: Modules) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        for place, path in enumerate(self.paths[modules.side]):
            try:
                yield path, modules.tensor(path)
            except ConfigError as error:
                raise error.at(_KEYS[modules.side], place) from None

    def _check(self, written: WrittenTerm) -> None:
        for key, (names, example) in _NAMED_BY.items():
            given, requested = getattr(written.config, key), [name for name in self.inputs if name in names]
            if given and not requested:
                raise ConfigError(f"has no effect: {self._owner} does not request {' or '.join(names)}", field=key)
            if requested and not given:
                write, what = f"{key}: [{example}]", f"{self._owner} requests {' and '.join(requested)}"
                if written.place.path[:1] != WRITTEN_AS_TERM:
                    raise ConfigError(
                        f"{what}, which only a term can name. Write the loss as one of the terms, with {write}",
                        field="loss",
                    )
                raise ConfigError(f"is required, since {what}. Write the names to read, such as {write}", field=key)
