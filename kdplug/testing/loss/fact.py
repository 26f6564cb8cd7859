"""Tests of the facts that a loss states. A stated fact excludes other tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdplug.contracts.loss import (
    COMPARES_ITEMS,
    INTEGER_INPUTS,
    OWN_PARAMETERS,
    RANDOM,
    READS_TEACHER,
    TAKES_SCORES,
    stated_facts,
)
from kdplug.host.component import KNOWN_ATTRIBUTES, misspelt
from kdplug.testing.law import are_finite, broken, is_close, number, where
from kdplug.testing.loss.case import LossCase, read_outcome
from kdplug.testing.sample import WHOLE_NUMBERS, Sample, seeded

_REMOVE = "Remove this fact, since it excludes tests"


class FactLaws(LossCase):
    """A stated fact is true, so that it excludes no law that the loss should keep."""

    def test_it_draws_if_it_says_so_and_not_otherwise(self) -> None:
        """Catches random draws that are not stated, which other laws would report as a wrong order or division; and
        ``random = True`` on a loss that draws nothing.
        """
        sample, component = self.sample(masked=False), self.build_in(torch.float64)
        states = {name: tensor.clone() for name, tensor in _state(component.target).items()}
        values = []
        for ambient, draw_seed in ((1, 3), (2, 3), (2, 4)):
            for name, tensor in _state(component.target).items():
                tensor.copy_(states[name])
            with seeded(ambient), torch.no_grad():
                values.append(number(read_outcome(component(**sample.but(draw_seed=draw_seed).values())).value))
        draws = len(set(values)) > 1
        if draws and not self.states(RANDOM):
            broken(
                f"gives {values[0]:.6g} and {values[1] if values[1] != values[0] else values[2]:.6g} for two seeds. State "
                "random = True in the class, or with @kdplug.facts(random=True)"
            )
        if not draws and self.states(RANDOM):
            broken(f"states random = True, but gives the same value for two seeds. {_REMOVE}")

    def test_its_attributes_are_read(self) -> None:
        """Catches a misspelt declaration or fact, such as ``whole_sequence = True``, which would have no effect.

        Your own attribute with a similar name may start with an underscore.
        """
        for name, near in misspelt(self._found.load(), KNOWN_ATTRIBUTES["losses"]):
            broken(
                f"sets {name}, which kdplug does not read. Did you mean {near!r}? Otherwise rename it, for example to _{name}"
            )

    @where(lambda laws: laws.states(COMPARES_ITEMS))
    def test_a_loss_that_says_it_compares_items_does(self) -> None:
        """Catches ``compares_items = True`` on a sum or a mean over items, whose division nothing would test then."""
        sample = self.sample(masked=False)
        if self.on_logits() and not self.takes_sequences():
            flat = sample.both(lambda tensor: tensor.reshape(-1, tensor.shape[-1]))
            sample = flat.but(labels=sample.labels.reshape(-1))
        if self._is_a_mean_or_sum(sample):
            broken(
                "states compares_items = True, but its value for a batch is the mean or sum of those for two parts of it. "
                f"{_REMOVE}"
            )

    def _is_a_mean_or_sum(self, sample: Sample) -> bool:
        """Return whether the whole is the mean, or the sum, of any two parts of the batch."""
        rows = list(range(sample.student[0].shape[0]))
        whole = self.evaluate(sample)
        means, sums = [], []
        for cut in (1, 2):
            parts = [self.evaluate(sample.rows(piece)) for piece in (rows[:cut], rows[cut:])]
            shares = [cut / len(rows), 1 - cut / len(rows)]
            if whole.is_sum:
                shares = [number(part.count) / number(whole.count) for part in parts]
            mean = sum(share * part.value.detach() for share, part in zip(shares, parts, strict=True))
            total = sum(part.value.detach() for part in parts)
            means.append(is_close(torch.as_tensor(mean), whole.value.detach()))
            sums.append(is_close(torch.as_tensor(total), whole.value.detach()))
        return all(means) or all(sums)

    @where(lambda laws: laws.states(TAKES_SCORES) and laws.on_logits())
    def test_a_loss_that_says_it_takes_scores_needs_to(self) -> None:
        """Catches ``takes_scores = True`` on a loss of probabilities, for which ``-inf`` is a valid logit."""
        sample = self.sample(masked=False)
        ruled_out = tuple(
            tensor.index_fill(-1, torch.tensor([tensor.shape[-1] - 1]), -torch.inf) for tensor in sample.teacher
        )
        outcome, gradients = self.gradients(sample.but(teacher=ruled_out))
        if are_finite([outcome.value]) and are_finite(gradients):
            broken(f"states takes_scores = True, but stays finite at a teacher score of -inf. {_REMOVE}")

    @where(lambda laws: laws.states(OWN_PARAMETERS))
    def test_a_loss_that_says_it_has_parameters_does(self) -> None:
        """Catches ``own_parameters = True`` on a loss without any, or with parameters in a plain list."""
        target = self.build().target
        if not isinstance(target, nn.Module) or not list(target.parameters()):
            broken(f"states own_parameters = True, but has no parameters. {_REMOVE}")

    @where(lambda laws: laws.states(READS_TEACHER))
    def test_a_loss_that_says_it_ignores_the_teacher_does(self) -> None:
        """Catches ``reads_teacher = False`` on a loss whose value depends on the teacher."""
        sample, other = self.sample(), self.sample(1)
        before, after = (self.evaluate(one).value for one in (sample, sample.but(teacher=other.teacher)))
        if not is_close(before, after):
            broken(
                f"states reads_teacher = False, but its value changes from {number(before):.6g} to {number(after):.6g} with "
                f"another teacher. {_REMOVE}"
            )

    @where(lambda laws: laws.states(INTEGER_INPUTS))
    def test_the_whole_numbers_that_it_says_it_takes_are_read(self) -> None:
        """Catches ``integer_inputs`` with the name of an input that the loss does not request or read."""
        names = stated_facts(self._found.load())[INTEGER_INPUTS]
        strange = [name for name in names if name not in self._found.inputs]
        if strange:
            broken(
                f"states integer_inputs = {names!r}, but does not request {', '.join(strange)}. Name inputs of the loss: "
                f"{', '.join(self._found.inputs)}"
            )
        sample = self.sample()
        before, after = (self.evaluate(one).value for one in (sample, sample.but(teacher=_increased(sample.teacher))))
        if is_close(before, after):
            broken(f"states integer_inputs = {names!r}, but its value is the same for other numbers. {_REMOVE}")


def _state(target: object) -> dict[str, Tensor]:
    return target.state_dict() if isinstance(target, nn.Module) else {}


def _increased(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the whole numbers plus 1, and 0 in place of the largest."""
    return tuple(tensor if tensor.is_floating_point() else (tensor + 1) % WHOLE_NUMBERS for tensor in tensors)
