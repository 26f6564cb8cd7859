"""Tests that every balancer must pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdplug.testing.law import Laws, advise, broken, is_close, where
from kdplug.testing.sample import draw, seeded

_STEPS = 24
"""Number of updates in a run of the laws."""


@dataclass(frozen=True, slots=True)
class BalancerStep:
    """The inputs of one update: values and gradient norms above 0, one for each term."""

    values: Tensor
    gradients: Tensor
    number: int

    def inputs(self) -> dict[str, Any]:
        """Return every input by name."""
        return {
            "values": self.values,
            "gradients": self.gradients,
            "progress": self.number / _STEPS,
            "step": self.number,
            "total_steps": _STEPS,
            "epoch": self.number // 8,
        }

    def but(self, **changes: Any) -> BalancerStep:
        """Return a copy with other fields."""
        return replace(self, **changes)

    def each(self, change: Callable[[Tensor], Tensor]) -> BalancerStep:
        """Return a copy with ``change`` applied to values and gradients."""
        return self.but(values=change(self.values), gradients=change(self.gradients))


class _NoNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises an error where a number is read from a tensor, for which a device waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:  # noqa: SLF001  every read of a number ends here
            raise RuntimeError("it reads a number from a tensor, by if, .item(), float() or int()")
        return func(*args, **(kwargs or {}))


class BalancerCase(Laws):
    """A balancer and its test inputs."""

    weights: ClassVar[tuple[float, ...]] = (1.0, 0.5, 2.0)
    """The weights of the terms in the config."""

    shares: ClassVar[tuple[float | None, ...]] = ()
    """The terms' shares of the gradient, for a balancer that takes ``shares``; ``None`` for a term with a weight."""

    @classmethod
    def kind_of(cls) -> str:
        return "balancers"

    def first_law(self) -> tuple[str, Callable[[], object]]:
        return "test_it_returns_a_finite_weight_for_each_term", self.run

    def made(self, order: list[int] | None = None) -> Any:
        """Return a fresh balancer in float64, for terms in the order ``order``."""
        places = order or list(range(len(self.weights)))
        shares = self.shares or (None,) * len(self.weights)
        component = self.build()
        if component.widths:
            component = component.with_widths(
                num_terms=len(places),
                weights=tuple(self.weights[place] for place in places),
                shares=tuple(shares[place] for place in places),
            )
        target = component.target
        return target.double() if isinstance(target, nn.Module) else target

    def steps(self, count: int = _STEPS) -> list[BalancerStep]:
        """Return the inputs of a run: values that fall, each at its own rate, and gradient norms."""
        terms = len(self.weights)
        rates = torch.linspace(0.02, 0.2, terms, dtype=torch.float64)
        return [
            BalancerStep(
                torch.exp(draw((terms,), 1) - rates * number + 0.1 * draw((terms,), 10 + number)),
                torch.exp(draw((terms,), 2) + 0.1 * draw((terms,), 100 + number)),
                number,
            )
            for number in range(count)
        ]

    @torch.no_grad()
    def run(self, balancer: Any = None, steps: list[BalancerStep] | None = None) -> list[Any]:
        """Return what each update of a run returns."""
        balancer, inputs = self.made() if balancer is None else balancer, self._found.inputs
        found = []
        for one in self.steps() if steps is None else steps:
            given = one.inputs()
            got = balancer.update(*(given[name] for name in inputs))
            found.append(got.clone() if isinstance(got, Tensor) else got)
        return found


class BalancerLaws(BalancerCase):
    """Laws for a balancer, as pytest tests.

    ::

        class TestMyBalancer(BalancerLaws):
            entry = "mybalancer"
            symmetric = True
    """

    symmetric: ClassVar[bool] = False
    """Declares that the order of the terms does not matter: their weights follow them."""

    def test_it_returns_a_finite_weight_for_each_term(self) -> None:
        """Catches one weight for all terms, a list, a weight below 0, a division by 0 in the first step."""
        for number, found in enumerate(self.run()):
            if not isinstance(found, Tensor) or found.shape != (len(self.weights),):
                what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                broken(f"must return a tensor with a weight for each of the {len(self.weights)} terms, got {what}")
            _check(found, f"in update {number + 1}")

    @advise("Clamp divisors and exponents, for example weights.clamp(1e-4, 1e4)")
    def test_very_small_and_very_large_values_give_finite_weights(self) -> None:
        """Catches ``exp`` of a large number and a division by a value that has almost vanished."""
        for factor in (1e-12, 1e6):
            for found in self.run(steps=[one.each(lambda tensor: tensor * factor) for one in self.steps()]):  # noqa: B023
                _check(found, f"for values around {factor:g}")

    @advise("Do not change values or gradients in place: use x + y instead of x.add_(y)")
    def test_its_inputs_are_not_modified(self) -> None:
        """Catches a moving average that is accumulated in the values, which reports then show."""
        balancer = self.made()
        for one, before in zip(self.steps(), self.steps(), strict=True):
            self.run(balancer, [one])
            for name in ("values", "gradients"):
                if not torch.equal(getattr(one, name), getattr(before, name)):
                    broken(f"modified its input in place: {name}")

    @advise("Return a copy of the state, such as self.weights.clone()")
    def test_weights_that_were_returned_do_not_change(self) -> None:
        """Catches a buffer that is returned and changed in the next update, while a loss still uses it."""
        balancer, inputs = self.made(), self._found.inputs
        returned = []
        with torch.no_grad():
            for one in self.steps():
                given = one.inputs()
                found = balancer.update(*(given[name] for name in inputs))
                returned.append((found, found.clone()))
        if not all(torch.equal(found, copy) for found, copy in returned):
            broken("the weights of an update changed in a later one")

    @advise("Draw no random numbers; a seed may come from step")
    def test_the_same_run_gives_the_same_weights(self) -> None:
        """Catches random weights, which differ between processes."""
        with seeded(1):
            first = self.run()
        with seeded(2):
            again = self.run()
        if not _equal(first, again):
            broken("a second run with the same values returned different weights: they depend on more than the inputs")

    def test_its_state_is_in_buffers(self) -> None:
        """Catches a parameter, which no loss would train, and a tensor in a plain attribute, which no checkpoint would hold."""
        target = self.made()
        self.run(target)
        if isinstance(target, nn.Module) and (names := [name for name, _ in target.named_parameters()]):
            broken(
                f"has the parameter {names[0]!r}, which no loss trains: call register_buffer, and change it in update"
            )
        loose = [name for name, one in vars(target).items() if isinstance(one, Tensor)]
        if loose:
            broken(
                f"keeps a tensor in the plain attribute {loose[0]!r}, which is not saved: call register_buffer in __init__"
            )

    @advise("Keep all state in buffers, which __init__ registers in their final shape")
    def test_a_resumed_run_has_the_same_weights(self) -> None:
        """Catches a count of steps or a list of values in an attribute: it starts again when a run resumes."""
        steps = self.steps()
        whole = self.run(steps=steps)
        for place in (1, _STEPS // 2):
            first, second = self.made(), self.made()
            found = self.run(first, steps[:place])
            if isinstance(first, nn.Module):
                state = {name: value.clone() for name, value in first.state_dict().items()}
                second.load_state_dict(state)
            if not _equal(found + self.run(second, steps[place:]), whole):
                broken(f"a run that is resumed from its state dict after update {place} has different weights")

    @advise("Compute with tensors: torch.where instead of if, and counts in integer buffers")
    def test_it_does_not_wait_for_the_device(self) -> None:
        """Catches ``if value > 0`` and ``.item()``, for which a GPU waits in each step."""
        balancer = self.made()
        with _NoNumbers():  # type: ignore[no-untyped-call]
            try:
                self.run(balancer)
            except RuntimeError as error:
                if "reads a number" not in str(error):
                    raise
                broken(str(error))

    @advise("Treat all terms in the same way, or do not declare symmetric")
    @where(lambda laws: laws.symmetric)
    def test_the_order_of_the_terms_does_not_matter(self) -> None:
        """Catches a term that counts more because of its place, and weights in another order than the terms."""
        order = list(range(len(self.weights)))[::-1]
        first = self.run()
        turned = self.run(self.made(order), [one.each(lambda tensor: tensor[order]) for one in self.steps()])
        for one, two in zip(first, turned, strict=True):
            if not is_close(two, one[order], 1e-9):
                broken("is declared symmetric, but the weights of reordered terms are not in the same order")


def _check(weights: Tensor, when: str) -> None:
    if not bool(torch.isfinite(weights).all()):
        broken(f"returned a weight that is not finite {when}")
    if bool((weights < 0).any()):
        broken(f"returned a weight below 0 {when}: the term would be maximized")
    if weights.requires_grad:
        broken("the weights carry a gradient, but they are constants of the next step: keep the state in buffers")


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
