"""The advice for each mutant, by name, with what the mutant becomes once it is followed."""

from __future__ import annotations

from typing import Any

from testing.mutant import MUTANTS

WORDS: dict[str, str] = {}
"""What the law says to change, for each mutant."""

FOLLOWED: dict[str, list[Any]] = {}
"""The mutants with that change, or laws with the declaration that it names, for one or more ways that the advice gives."""


def undone(**words: str) -> None:
    """Follow the advice by what a mutant's parent does: they differ in that alone."""
    for name, advice in words.items():
        followed(name, advice)(MUTANTS[name].target.__mro__[1])


def followed(name: str, advice: str) -> Any:
    """Decorator of a mutant with the advice followed."""

    def put(target: Any) -> Any:
        assert WORDS.setdefault(name, advice) == advice
        FOLLOWED.setdefault(name, []).append(target)
        return target

    return put
