"""Tests that every layer map must pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, ClassVar

from kdplug.errors import ConfigError
from kdplug.testing.law import Laws, advise, broken, where

Pairs = list[tuple[int, int]]


class LayerMapLaws(Laws):
    """Tests that every layer map must pass, for pytest.

    A map may reject numbers of layers that it does not support, with a ``ConfigError`` that gives the reason; the laws
    skip those.

    ::

        class TestMyMap(LayerMapLaws):
            entry = "mymap"
            reaches_the_top = True
    """

    depths: ClassVar[tuple[tuple[int, int], ...]] = (
        (1, 1),
        (1, 12),
        (2, 4),
        (3, 12),
        (5, 12),
        (6, 12),
        (11, 12),
        (24, 48),
    )
    """Numbers of layers to try, the student's first."""

    equal_depths: ClassVar[tuple[int, ...]] = (1, 2, 6, 12)
    """Equal numbers of layers to try on both sides."""

    reaches_the_top: ClassVar[bool] = False
    """Declares that the student's last layer learns from the teacher's last."""

    covers_the_student: ClassVar[bool] = False
    """Declares that every layer of the student learns from one."""

    @classmethod
    def kind_of(cls) -> str:
        return "layer_maps"

    def first_law(self) -> tuple[str, Callable[[], object]]:
        return "test_it_returns_pairs_of_whole_numbers", lambda: list(self.every())

    def pairs(self, student: int, teacher: int) -> Pairs | None:
        """Return the pairs for these numbers of layers, or ``None`` if the map rejects them."""
        try:
            found: Any = self.build()(student_layers=student, teacher_layers=teacher)
            return [(ours, theirs) for ours, theirs in found]
        except ConfigError:
            return None
        except Exception as error:
            broken(
                f"{student} student and {teacher} teacher layers raise {type(error).__name__}: {error}. "
                "Return pairs, or raise a ConfigError with the reason"
            )

    def every(self) -> Iterator[tuple[int, int, Pairs]]:
        """Yield the numbers of layers with their pairs, unless the map rejects them."""
        for student, teacher in self.depths:
            found = self.pairs(student, teacher)
            if found is not None:
                yield student, teacher, found

    def test_it_returns_pairs_of_whole_numbers(self) -> None:
        """Catches ``m * N / M``, a float if it divides and a wrong layer otherwise; an empty map; numpy integers."""
        made = list(self.every())
        if not made:
            broken("rejects every number of layers tried. Declare depths that it accepts")
        for student, teacher, pairs in made:
            if not pairs:
                broken(f"{_depths(student, teacher)}: no pairs. Raise a ConfigError with the reason")
            for pair in pairs:
                if not all(type(number) is int for number in pair):
                    broken(
                        f"{_depths(student, teacher)}: {pair} is not a pair of Python integers: use // or int(round())"
                    )

    @advise("Name the student's layer first in each pair, and count layers from 1: layer 0 is the embeddings' output")
    def test_every_layer_that_it_names_exists(self) -> None:
        """Catches layers counted from the embeddings, or one too many. Layer 0 is the embeddings' output."""
        for student, teacher, pairs in self.every():
            for ours, theirs in pairs:
                if not 0 <= ours <= student:
                    broken(
                        f"{_depths(student, teacher)}: {(ours, theirs)} names student layer {ours}, but the student's layers are 0 to {student}"
                    )
                if not 0 <= theirs <= teacher:
                    broken(
                        f"{_depths(student, teacher)}: {(ours, theirs)} names teacher layer {theirs}, but the teacher's layers are 0 to {teacher}"
                    )

    @advise("Sort the pairs, the student's layer first in each")
    def test_layers_ascend_on_both_sides(self) -> None:
        """Catches student and teacher swapped; a deeper layer matched with a shallower one."""
        for student, teacher, pairs in self.every():
            for before, after in pairwise(pairs):
                if after[0] < before[0] or after[1] < before[1]:
                    broken(f"{_depths(student, teacher)}: pairs must ascend, but {after} comes after {before}")

    @advise("Return each pair once, as sorted(set(pairs)) does")
    def test_no_pair_comes_twice(self) -> None:
        """Catches a match that counts twice, because rounding makes two pairs equal."""
        for student, teacher, pairs in self.every():
            twice = [pair for pair in pairs if pairs.count(pair) > 1]
            if twice:
                broken(f"{_depths(student, teacher)}: {twice[0]} is repeated {pairs.count(twice[0])} times")

    @advise("Compute pairs from the numbers of layers alone, or draw with a fixed seed")
    def test_the_same_layers_give_the_same_pairs(self) -> None:
        """Catches a map that chooses layers at random: a resumed run would then match others."""
        for student, teacher, pairs in self.every():
            again = self.pairs(student, teacher)
            if again != pairs:
                broken(f"{_depths(student, teacher)}: returned {pairs}, then {again} on a second call")

    @advise("Count layers from 1 on both sides")
    def test_equal_depths_match_each_layer_with_itself(self) -> None:
        """Catches a shift by one, from counting from 0 instead of 1."""
        for layers in self.equal_depths:
            for ours, theirs in self.pairs(layers, layers) or ():
                if ours != theirs:
                    broken(f"{_depths(layers, layers)}: layer {ours} learns from layer {theirs}")

    @advise("Return the pair of the last layers too, or do not declare reaches_the_top")
    @where(lambda laws: laws.reaches_the_top)
    def test_the_last_layer_learns_from_the_last(self) -> None:
        """Catches a range that ends one too early."""
        for student, teacher, pairs in self.every():
            if (student, teacher) not in pairs:
                broken(f"{_depths(student, teacher)}: is declared to match the last layers, but returns {pairs}")

    @advise("Return a pair for every layer of the student, or do not declare covers_the_student")
    @where(lambda laws: laws.covers_the_student)
    def test_every_layer_of_the_student_learns(self) -> None:
        """Catches a layer skipped by rounding."""
        for student, teacher, pairs in self.every():
            missing = sorted(set(range(1, student + 1)) - {ours for ours, _ in pairs})
            if missing:
                broken(
                    f"{_depths(student, teacher)}: student layer {missing[0]} has no match, but every layer is declared to have one"
                )


def _depths(student: int, teacher: int) -> str:
    return f"{student} student and {teacher} teacher layers"
