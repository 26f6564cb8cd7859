"""Laws for external teachers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdplug.contracts.outputs import Outputs
from kdplug.contracts.teacher import ExternalTeacher
from kdplug.contracts.tree import map_leaves, tensors
from kdplug.testing.law import Laws, broken, is_close, where
from kdplug.testing.sample import draw, seeded


class TeacherLaws(Laws):
    """Laws for an external teacher, as pytest tests. Start a server, or a stand-in for it, in a fixture.

    ::

        class TestMyTeacher(TeacherLaws):
            entry = "myteacher"
            settings = {"url": "http://127.0.0.1:8000"}

            def batch(self):
                return torch.randn(4, 8)
    """

    by_example: ClassVar[bool] = True
    """Declares that the first axis of each output is the examples of the batch, each of which is answered by itself."""

    tolerance: ClassVar[float] = 1e-5
    """Largest difference of an example's outputs in another order of the batch."""

    @classmethod
    def kind_of(cls) -> str:
        return "teachers"

    def first_law(self) -> tuple[str, Callable[[], object]]:
        return "test_it_returns_what_an_adaptor_returns", lambda: self.outputs(self.batch())

    def batch(self) -> Any:
        """Return a batch as the task's ``collate`` builds it, always the same. The default is ``[4, 8]`` numbers."""
        return draw((4, 8), 1).float()

    def teacher(self) -> Any:
        """Return a new teacher."""
        return self.build().target

    def outputs(self, batch: Any) -> Outputs:
        """Return the outputs for a batch, as a run reads them."""
        with torch.no_grad():
            return Outputs.read(self.teacher()(batch), "teacher")

    def test_it_returns_what_an_adaptor_returns(self) -> None:
        """Catches a list of numbers instead of tensors, a key that no loss reads, and an empty mapping."""
        if not isinstance(self.teacher(), ExternalTeacher):
            broken("lacks __call__(batch) or fingerprint(). Define both")
        found = self.outputs(self.batch())
        if not found.given:
            broken("returned no outputs. Return at least logits, hidden, attention or extras")
        for key in found.given:
            for tensor in tensors(getattr(found, key)):
                if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
                    broken(f"returned nan under {key} for an ordinary batch")

    def test_the_batch_is_not_modified(self) -> None:
        """Catches a tensor that is scaled or moved in place before it is sent: the student reads the same one."""
        given = self.batch()
        before = copy.deepcopy(given)
        self.outputs(given)
        if not _are_equal(given, before):
            broken("modified the batch. Send a copy")

    def test_the_same_batch_gives_the_same_outputs(self) -> None:
        """Catches sampling and dropout on the server: a resumed run would learn from other outputs."""
        with seeded(1):
            teacher = self.teacher()
            first = Outputs.read(teacher(self.batch()), "teacher")
        with seeded(2):
            again = Outputs.read(teacher(self.batch()), "teacher")
        if not _are_close(first, again, self.tolerance):
            broken("a second call gives other outputs. Turn off sampling and dropout")

    def test_the_outputs_carry_no_gradient(self) -> None:
        """Catches a local model that is run without ``torch.no_grad()``, whose graph takes memory in each step."""
        found = Outputs.read(self.teacher()(self.batch()), "teacher")
        if any(tensor.requires_grad for key in found.given for tensor in tensors(getattr(found, key))):
            broken("its outputs carry a gradient. Compute them under torch.no_grad()")

    @where(lambda laws: laws.by_example)
    def test_examples_are_answered_each_by_itself(self) -> None:
        """Catches outputs in another order than the batch, and statistics over the batch: a cache stores single examples."""
        batch = self.batch()
        rows = next((len(one) for one in tensors(batch) if one.dim()), 0)
        if rows < 3:
            broken("the batch of the laws must have at least 3 examples. Return more from batch()")
        order = torch.tensor([1, 2, 0, *range(3, rows)])
        found, again = self.outputs(batch), self.outputs(_rows(batch, order, rows))
        if not _are_close(Outputs.read(_by_key(found, order, rows), "teacher"), again, self.tolerance):
            broken(
                "examples in another order do not get their outputs in that order. Return one row for each example, in the order "
                "of the batch, or declare by_example = False"
            )

    def test_its_fingerprint_is_plain_data_and_stays_the_same(self) -> None:
        """Catches a time or an address in memory, with which a cache never matches, and an object that JSON cannot hold."""
        one, other = self.teacher(), self.teacher()
        first = one.fingerprint()
        try:
            json.dumps(first, allow_nan=False)
        except (TypeError, ValueError) as error:
            broken(f"its fingerprint is not plain data: {error}. Return texts, numbers, lists and mappings")
        one(self.batch())
        if first != one.fingerprint() or first != other.fingerprint():
            broken(
                "its fingerprint changes between calls or objects. Return what determines the outputs, such as the model's version"
            )


def _rows(value: Any, order: Tensor, rows: int) -> Any:
    return map_leaves(
        lambda one: one[order] if isinstance(one, Tensor) and one.dim() and len(one) == rows else one, value
    )


def _by_key(found: Outputs, order: Tensor, rows: int) -> dict[str, Any]:
    return {key: _rows(getattr(found, key), order, rows) for key in found.given}


def _are_close(one: Outputs, other: Outputs, tolerance: float) -> bool:
    if one.given != other.given:
        return False
    pairs = [list(tensors([getattr(side, key) for key in side.given])) for side in (one, other)]
    return len(pairs[0]) == len(pairs[1]) and all(
        first.shape == second.shape and is_close(first, second, tolerance) for first, second in zip(*pairs, strict=True)
    )


def _are_equal(one: Any, other: Any) -> bool:
    first, second = list(tensors(one)), list(tensors(other))
    return len(first) == len(second) and all(map(torch.equal, first, second))
