"""Known defects, by name."""

from __future__ import annotations

from typing import Any, NamedTuple

from kdplug.testing.law import Laws


class Mutant(NamedTuple):
    """The laws that a defect is put under, the defect, the law that must catch it, and words of that law's message."""

    laws: type[Laws]
    target: Any
    law: str
    words: str


MUTANTS: dict[str, Mutant] = {}


def mutant(laws: type[Laws], law: str, words: str) -> Any:
    """Decorator of a defect."""

    def put(target: Any) -> Any:
        target.__doc__ = target.__doc__ or "A mutant."
        assert target.__name__ not in MUTANTS, f"two mutants are called {target.__name__}"
        MUTANTS[target.__name__] = Mutant(laws, target, law, words)
        return target

    return put
