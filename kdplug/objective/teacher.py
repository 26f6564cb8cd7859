"""Which teachers there are, and what each of them gave."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from kdplug.contracts.outputs import Outputs
from kdplug.contracts.vocabulary import ADAPTOR_KEYS
from kdplug.errors import ConfigError, OutputsError, did_you_mean

Names = tuple[str, ...]

_KEYS = frozenset(ADAPTOR_KEYS)


def teacher_names(teachers: int | Sequence[str]) -> Names:
    """The teachers' keys; where just their number is known, ``"0"``, ``"1"``…

    Raises: ``ConfigError`` unless there is at least one, and each key is text that no other has.
    """
    if isinstance(teachers, int) and not isinstance(teachers, bool) and teachers > 0:
        return tuple(map(str, range(teachers)))
    if isinstance(teachers, (int, str)) or not teachers or not all(isinstance(key, str) and key for key in teachers):
        raise ConfigError(f"must be a number above 0, or the teachers' keys, got {teachers!r}", field="teachers")
    if len(set(teachers)) < len(teachers):
        raise ConfigError(f"each teacher needs a key of its own, got {list(teachers)}", field="teachers")
    return tuple(teachers)


def place_of(teacher: int | str | None, names: Names) -> int:
    """The place of the teacher that a match reads: an index, a key, or ``None`` where there is just one.

    Raises: ``ConfigError`` where that is none of the teachers, or does not say which.
    """
    if teacher is None:
        if len(names) > 1:
            raise ConfigError(
                f"must name one of the {len(names)} teachers, since a match reads one: {_listed(names)}",
                field="teacher",
            )
        return 0
    if isinstance(teacher, int):
        if teacher < len(names):
            return teacher
        raise ConfigError(f"there is no teacher {teacher}. {_there(names)}", field="teacher")
    if teacher not in names:
        raise ConfigError(
            f"there is no teacher {teacher!r}.{did_you_mean(teacher, names)} {_there(names)}", field="teacher"
        )
    return names.index(teacher)


def side(names: Names, place: int) -> str:
    """What messages call a teacher: ``teacher`` where it is the only one, otherwise ``teacher 'key'``."""
    return "teacher" if len(names) == 1 else f"teacher {_shown(names[place])}"


def read_teachers(value: object, names: Names) -> tuple[Outputs, ...]:
    """What each teacher gave, in the order of ``names``.

    One teacher's outputs stand alone; those of several are a list in that order, or a mapping by key.

    Raises: ``OutputsError`` where their number or keys are others.
    """
    if len(names) == 1 and type(value) is dict and value.keys() <= _KEYS:
        return (Outputs.read(value, "teacher"),)
    if value is None:
        return (Outputs(),) * len(names)
    several = _several(value)
    if several is None:
        if len(names) > 1:
            raise OutputsError(f"got the outputs of one teacher. {_there(names)}", field="teacher")
        return (Outputs.read(value, "teacher"),)
    if isinstance(several, Mapping):
        several = _in_order(several, names)
    if len(several) != len(names):
        raise OutputsError(f"got the outputs of {len(several)} teachers. {_there(names)}", field="teacher")
    return tuple(Outputs.read(one, side(names, place)) for place, one in enumerate(several))


def _several(value: object) -> Collection[object] | None:
    """``value`` where it holds the outputs of teachers and not tensors, which are the outputs of one."""
    if isinstance(value, Mapping):
        items: Collection[object] = value.values()
    elif isinstance(value, (list, tuple)):
        items = value
    else:
        return None
    found = bool(items) and all(isinstance(one, (Mapping, Outputs)) for one in items)
    return value if found else None


def _in_order(several: Mapping[object, object], names: Names) -> list[object]:
    by_name = {str(key): one for key, one in several.items()}
    if by_name.keys() != set(names):
        raise OutputsError(f"got the outputs of {', '.join(by_name)}. {_there(names)}", field="teacher")
    return [by_name[name] for name in names]


def _there(names: Names) -> str:
    return f"There {'is' if len(names) == 1 else 'are'} {len(names)}: {_listed(names)}"


def _listed(names: Names) -> str:
    return ", ".join(map(_shown, names))


def _shown(name: str) -> str:
    return name if name.isdecimal() else repr(name)
