"""The laws of a layer map."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

from kdplug.errors import ConfigError
from kdplug.testing.law import Laws, broken, where

Pairs = list[tuple[int, int]]


class LayerMapLaws(Laws):
    """Laws that a layer map keeps, as pytest tests.

    A map may refuse numbers of layers that do not fit it, with a ``ConfigError`` that says why; the laws pass over those.

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

    alike: ClassVar[tuple[int, ...]] = (1, 2, 6, 12)
    """Numbers of layers to try for both sides at once."""

    reaches_the_top: ClassVar[bool] = False
    """Declares: the student's last layer learns from the teacher's last."""

    covers_the_student: ClassVar[bool] = False
    """Declares: every layer of the student learns from one."""

    @classmethod
    def kind_of(cls) -> str:
        return "layer_maps"

    def pairs(self, student: int, teacher: int) -> Pairs | None:
        """The pairs for so many layers, or ``None`` where the map refuses them."""
        try:
            found: Any = self.build()(student_layers=student, teacher_layers=teacher)
            return [(ours, theirs) for ours, theirs in found]
        except ConfigError:
            return None
        except Exception as error:
            broken(
                f"{student} student and {teacher} teacher layers end in {type(error).__name__}: {error}. "
                "Return pairs, or say in a ConfigError why there are none"
            )

    def every(self) -> Iterator[tuple[int, int, Pairs]]:
        """The numbers of layers, and the pairs, wherever the map does not refuse them."""
        for student, teacher in self.depths:
            found = self.pairs(student, teacher)
            if found is not None:
                yield student, teacher, found

    def test_it_returns_pairs_of_whole_numbers(self) -> None:
        """For: ``m * N / M``, a float where it divides and a wrong layer where it does not; an empty map; numpy's numbers."""
        made = list(self.every())
        if not made:
            broken("refuses every number of layers that it is tried with. Declare depths that it takes")
        for student, teacher, pairs in made:
            if not pairs:
                broken(f"{_depths(student, teacher)}: no pair at all. Say in a ConfigError why there is none")
            for pair in pairs:
                if not all(type(number) is int for number in pair):
                    broken(f"{_depths(student, teacher)}: {pair} is no pair of Python integers")

    def test_every_layer_that_it_names_exists(self) -> None:
        """For: layers counted from the embeddings, or to one more than there are. Layer 0 is what the embeddings put out."""
        for student, teacher, pairs in self.every():
            for ours, theirs in pairs:
                if not 0 <= ours <= student:
                    broken(f"{_depths(student, teacher)}: {(ours, theirs)} names student layer {ours}")
                if not 0 <= theirs <= teacher:
                    broken(f"{_depths(student, teacher)}: {(ours, theirs)} names teacher layer {theirs}")

    def test_layers_ascend_on_both_sides(self) -> None:
        """For: student and teacher swapped; a deeper layer that learns from a shallower one."""
        for student, teacher, pairs in self.every():
            for before, after in pairwise(pairs):
                if after[0] < before[0] or after[1] < before[1]:
                    broken(f"{_depths(student, teacher)}: {after} comes after {before}")

    def test_no_pair_comes_twice(self) -> None:
        """For: a match that counts double, where rounding makes two pairs one."""
        for student, teacher, pairs in self.every():
            twice = [pair for pair in pairs if pairs.count(pair) > 1]
            if twice:
                broken(f"{_depths(student, teacher)}: {twice[0]} comes {pairs.count(twice[0])} times")

    def test_the_same_layers_give_the_same_pairs(self) -> None:
        """For: a map that draws its layers by chance: a resumed run then learns from others."""
        for student, teacher, pairs in self.every():
            again = self.pairs(student, teacher)
            if again != pairs:
                broken(f"{_depths(student, teacher)}: {pairs}, and {again} when asked again")

    def test_equal_depths_match_each_layer_with_itself(self) -> None:
        """For: a shift by one, from an index that counts from 0 where the layers count from 1."""
        for layers in self.alike:
            for ours, theirs in self.pairs(layers, layers) or ():
                if ours != theirs:
                    broken(f"{_depths(layers, layers)}: layer {ours} learns from layer {theirs}")

    @where(lambda laws: laws.reaches_the_top)
    def test_the_last_layer_learns_from_the_last(self) -> None:
        """For: a range that ends one too early."""
        for student, teacher, pairs in self.every():
            if (student, teacher) not in pairs:
                broken(f"{_depths(student, teacher)}: was declared to match the last layers, and makes {pairs}")

    @where(lambda laws: laws.covers_the_student)
    def test_every_layer_of_the_student_learns(self) -> None:
        """For: a layer that rounding jumps over."""
        for student, teacher, pairs in self.every():
            missing = sorted(set(range(1, student + 1)) - {ours for ours, _ in pairs})
            if missing:
                broken(f"{_depths(student, teacher)}: student layer {missing[0]} learns from none, and was declared to")


def _depths(student: int, teacher: int) -> str:
    return f"{student} student and {teacher} teacher layers"
