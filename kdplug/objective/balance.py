"""The balancer of an objective: a factor of each term's weight, updated once per optimizer step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from kdplug.config.error_path import prefixed
from kdplug.config.layer import is_path
from kdplug.config.term import TermPlace
from kdplug.errors import ConfigError, KdplugError, RunError, SignatureError
from kdplug.host import registry
from kdplug.host.component import Component
from kdplug.host.spec import ComponentSpec
from kdplug.objective.capture.path import Modules
from kdplug.objective.report import LossReport

_FIELD = "balancer"
_PATIENCE = 500
"""Calls of an objective in train mode after which a missing update causes a warning."""


@dataclass(frozen=True, slots=True)
class BalancedTerm:
    """A term as its balancer sees it: its weight without scheduler, and its share if the weight is one."""

    name: str
    weight: float
    share: float | None
    place: TermPlace

    def located(self, error: KdplugError) -> KdplugError:
        """Complete an error about the weight of the term."""
        return self.place.locate(error.at("weight", *(["share"] if self.share is not None else [])))


class Balance(nn.Module):
    """The balancer of the terms of one objective, with the weights that it returned last.

    A training loop calls ``update`` once per optimizer step with the report of the step; the weights then apply to the
    next one. A term that is 0 in a step, because its weight is scheduled at 0 or nothing was counted, keeps its last value.
    Until every term had one, and in a step with a value that is not finite, the weights stay unchanged.

    If the balancer has an attribute ``calibrate_steps``, its weights are fixed before training: inside ``calibrating``,
    ``update`` is called with the reports of that many steps that are not trained on.

    ``owner`` is the qualified name of the balancer.
    """

    weights: Tensor
    values: Tensor
    gradients: Tensor | None
    updates: Tensor

    def __init__(self, spec: ComponentSpec, terms: Sequence[BalancedTerm]) -> None:
        super().__init__()
        self.terms = tuple(terms)
        component = _built(spec, self.terms)
        self.owner = component.entry.qualified
        self.inputs = component.inputs
        self.balancer: Any = component.target
        self.calibrate_steps: int = getattr(self.balancer, "calibrate_steps", 0)
        self.layer = _layer_of(self.balancer, self.owner)
        self.register_buffer("weights", torch.ones(len(self.terms)))
        self.register_buffer("values", torch.full((len(self.terms),), torch.nan))
        self.register_buffer("gradients", torch.full((len(self.terms),), torch.nan) if self.needs_gradients else None)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.to(torch.float32 if torch.backends.mps.is_available() else torch.float64)
        self.is_unweighted = False
        self._is_ready = not self.calibrate_steps
        self._step: int | None = None
        self._calls = 0

    @property
    def needs_gradients(self) -> bool:
        """Return whether the balancer requests the gradient norms of the terms."""
        return "gradients" in self.inputs

    def each(self, step: int, *, trains: bool) -> Iterable[Tensor | None]:
        """Return the weight of each term in a call for ``step``; ``None`` inside ``unweighted``.

        Raises: ``RunError`` in a call that ``trains`` if the weights were not calibrated, or not updated since the step before.
        """
        if self.is_unweighted:
            return repeat(None)
        if trains:
            self._check_called(step)
        return self.weights.unbind()

    def _check_called(self, step: int) -> None:
        if not self._is_ready:
            self._is_ready = bool(self.updates)
            if not self._is_ready:
                raise RunError(
                    f"{self.owner} computes the weights before training, from {self.calibrate_steps} steps. In your own loop, call "
                    "objective.balance.update(report, student) for each of them inside objective.balance.calibrating()",
                    field=_FIELD,
                )
        if self.calibrate_steps:
            return
        if self._step is not None and step > self._step:
            raise RunError(
                f"{self.owner} was not updated after step {self._step}. In your own loop, call objective.balance.update(report, "
                "student) once per optimizer step",
                field=_FIELD,
            )
        self._step, self._calls = step, self._calls + 1
        if self._calls == _PATIENCE:
            warnings.warn(
                f"{self.owner} was not updated in {_PATIENCE} calls of the objective, so the weights do not change. In your own "
                "loop, call objective.balance.update(report, student) once per optimizer step",
                stacklevel=4,
            )

    def without_update(self) -> None:
        """Accept that the last step had no update, for a loop that skipped it."""
        self._step, self._calls = None, 0

    @contextmanager
    def unweighted(self) -> Iterator[None]:
        """Inside the block, every term has weight 1 and no schedule."""
        self.is_unweighted = True
        try:
            yield
        finally:
            self.is_unweighted = False

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """Inside the block, every term has weight 1 and no schedule, and ``update`` calibrates the weights.

        Raises: ``ConfigError`` at the end of the block, if a term had no gradient.
        """
        with self.unweighted():
            yield
        self._check_calibrated()

    def _check_calibrated(self) -> None:
        norms = self.values if self.gradients is None else self.gradients
        for term, value, norm in zip(self.terms, self.values.tolist(), norms.tolist(), strict=True):
            if not math.isfinite(norm):  # nan until it was measured
                layer = "" if self.layer is None else f" on {', '.join(self.layer)}"
                counted = f"its value is {value:g}" if math.isfinite(value) else "it counted no items"
                raise term.located(
                    ConfigError(
                        f"{term.name} has no finite gradient{layer} in the {self.calibrate_steps} steps that {self.owner} measures "
                        f"({counted}), so there is no weight for a share. Give the term a fixed weight in a run without shares, "
                        "remove it, raise calibrate_steps, or choose another layer"
                    )
                )
        self._check_finite(self.weights)
        self._is_ready = True

    def parameters_of(self, student: nn.Module) -> list[nn.Parameter]:
        """Return the trainable parameters whose gradients are measured.

        Raises: ``ConfigError`` if the balancer's layer is no module of the student, or has no trainable parameters.
        """
        if self.layer is None:
            return [one for one in student.parameters() if one.requires_grad]
        modules = Modules(student, "student")
        with prefixed(_FIELD, "layer"):
            paths = modules.expand(self.layer, listed=True)
            assert isinstance(paths, tuple)
            found = {id(one): one for path in paths for one in modules[str(path)].parameters() if one.requires_grad}
            if not found:
                raise ConfigError(f"{', '.join(self.layer)} has no trainable parameters of the student")
        return list(found.values())

    def update(
        self,
        report: LossReport,
        student: nn.Module | None = None,
        progress: float = 0.0,
        step: int = 0,
        total_steps: int = 0,
        *,
        epoch: int = 0,
    ) -> None:
        """Update the weights after one optimizer step, from the report of its only batch.

        ``student`` is needed if the balancer requests gradients: call this before ``backward()`` then.
        """
        values = {name: term.value.detach() for name, term in report.terms.items()}
        norms = self.norms(report, student) if self.needs_gradients else None
        self.take(values, norms, progress, step, total_steps, epoch=epoch)

    def norms(self, report: LossReport, student: nn.Module | None) -> dict[str, Tensor]:
        """Return the gradient norm of each unweighted term of a report, whose graph is kept."""
        if student is None:
            raise RunError(f"{self.owner} requests gradients: pass the student to update", field=_FIELD)
        parameters = self.parameters_of(student)
        return {
            name: norm_of(gradient_of(term.value, parameters), self.weights.dtype)
            for name, term in report.terms.items()
            if term.weight
        }

    @torch.no_grad()
    def take(
        self,
        values: Mapping[str, Tensor],
        norms: Mapping[str, Tensor] | None,
        progress: float,
        step: int,
        total_steps: int,
        *,
        epoch: int = 0,
    ) -> None:
        """Update the weights from the value and the gradient norm of each term by name, those of all processes.

        Nothing waits for the device. On a CPU, invalid weights raise an error; elsewhere they become nan, and so does the loss.

        Raises: ``SignatureError`` for weights that are not one finite number of at least 0 for each term.
        """
        self.values = self._latest(values, self.values)
        is_known = self.values.isfinite().all()
        if self.gradients is not None:
            self.gradients = self._latest(norms or {}, self.gradients)
            is_known &= self.gradients.isfinite().all()
        given = {
            "values": torch.where(is_known, self.values, 1.0),
            "gradients": None if self.gradients is None else torch.where(is_known, self.gradients, 1.0),
            "progress": progress,
            "step": step,
            "total_steps": total_steps,
            "epoch": epoch,
        }
        before = {name: one.clone() for name, one in self._state()}
        found = self._checked(self.balancer.update(*map(given.__getitem__, self.inputs)), is_known)
        for name, one in self._state():
            one.copy_(torch.where(is_known, one, before[name]))
        self.weights = torch.where(is_known, found, self.weights)
        self.updates = self.updates + is_known
        self.without_update()

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        return self.balancer.named_buffers() if isinstance(self.balancer, nn.Module) else iter(())

    def _latest(self, found: Mapping[str, Tensor], last: Tensor) -> Tensor:
        """Return the values in the order of the terms; a missing or zero one is the last one."""
        zero = last.new_zeros(())
        new = torch.stack([found.get(term.name, zero).to(last) for term in self.terms])
        return torch.where(new == 0, last, new)

    def _checked(self, found: Any, is_known: Tensor) -> Tensor:
        if not isinstance(found, Tensor) or found.shape != self.weights.shape:
            shown = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise SignatureError(
                f"{self.owner} must return a tensor with a weight for each of the {len(self.terms)} terms, got {shown}",
                field=_FIELD,
            )
        weights = found.detach().to(self.weights)
        if self._is_read(weights) and is_known:
            self._check_finite(weights)
        return torch.where(weights >= 0, weights, torch.nan)

    @staticmethod
    def _is_read(weights: Tensor) -> bool:
        """Return whether the weights can be read without waiting for a device."""
        return weights.is_cpu

    def _check_finite(self, weights: Tensor) -> None:
        for place, weight in enumerate(weights.tolist()):
            if not 0 <= weight < float("inf"):
                values = self.values.tolist()
                raise SignatureError(
                    f"{self.owner} returned the weight {weight:g} for {self.terms[place].name}, but a weight is a finite number >= 0. "
                    f"The terms' values: {', '.join(f'{value:.4g}' for value in values)}",
                    field=_FIELD,
                )

    def extra_repr(self) -> str:
        return self.owner


def _built(spec: ComponentSpec, terms: Sequence[BalancedTerm]) -> Component:
    """Build the balancer for the terms.

    Raises: ``EntryError``, ``SettingError``, ``SignatureError``; ``ConfigError`` if the terms' shares and the balancer do not
    belong together.
    """
    shares = [term.share for term in terms]
    try:
        component = registry.balancers.build(spec)
    except KdplugError as error:
        raise error.at(_FIELD) from error.__cause__
    owner, takes_shares = component.entry.qualified, "shares" in component.widths
    first = next((term for term in terms if term.share is not None), None)
    if takes_shares and first is None:
        raise ConfigError(
            f"{owner} has no effect: no term has a share. Write the weight of a term as {{share: 0.3}}", field=_FIELD
        )
    if first is not None and not takes_shares:
        raise first.located(
            ConfigError(
                f"cannot be combined with the balancer {owner}. Remove the balancer, or write a number as the weight"
            )
        )
    if component.widths:
        given = {"num_terms": len(terms), "weights": tuple(term.weight for term in terms), "shares": tuple(shares)}
        try:
            component = component.with_widths(**given)
        except KdplugError as error:
            raise (error.at(_FIELD) if first is None else first.located(error)) from error.__cause__
    _check_state(component)
    return component


def _check_state(component: Component) -> None:
    owner, target = component.entry.qualified, component.target
    if isinstance(target, nn.Module) and (names := [name for name, _ in target.named_parameters()]):
        raise SignatureError(
            f"{owner} has the parameter {names[0]!r}, which no loss would train. Keep the state of a balancer in buffers, and change "
            "it in update",
            field=_FIELD,
        )
    loose = [name for name, one in vars(target).items() if isinstance(one, Tensor)]
    if loose:
        raise SignatureError(
            f"{owner} keeps a tensor in the plain attribute {loose[0]!r}, which would not be saved. Derive the class from "
            "torch.nn.Module, and call register_buffer",
            field=_FIELD,
        )


def _layer_of(balancer: Any, owner: str) -> tuple[str, ...] | None:
    found = getattr(balancer, "layer", None)
    if found is None:
        return None
    layers = tuple(found) if isinstance(found, (list, tuple)) else (found,)
    if not layers or not all(isinstance(one, str) and is_path(one) for one in layers):
        raise SignatureError(
            f"{owner}: its attribute layer must be the path of a module of the student, a list of these, or None, got {found!r}",
            field=_FIELD,
        )
    return layers


def gradient_of(value: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradient of a term's value for each parameter, zeros for those it does not depend on. The graph is kept."""
    if not value.requires_grad:
        return [torch.zeros_like(one) for one in parameters]
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(one) if got is None else got for one, got in zip(parameters, found, strict=True)]


def norm_of(gradient: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the L2 norm of a gradient."""
    norm: Tensor = torch.stack([torch.linalg.vector_norm(one, dtype=dtype) for one in gradient]).norm()
    return norm
