"""Distillation of one teacher's logits and features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdplug.contracts.outputs import Outputs
from kdplug.distillers.custom_match import CustomMatch
from kdplug.integrations.textbrewer.configurations import DistillationConfig, TrainingConfig
from kdplug.integrations.textbrewer.distiller_basic import BasicDistiller
from kdplug.integrations.textbrewer.log import warn_once
from kdplug.integrations.textbrewer.match import find_losses, log_names, make_projections, match_value
from kdplug.integrations.textbrewer.term import kd_loss, modules_of, weighted
from kdplug.objective.batch import Batch
from kdplug.objective.capture.hooks import Capture
from kdplug.objective.custom_term import CustomTerm


class CustomMatches:
    """The terms of custom matches, and the hooks that capture their features.

    Raises: ``ConfigError`` for a module that is not in the model.
    """

    def __init__(self, matches: Iterable[CustomMatch], teacher: Any, student: nn.Module, device: Any) -> None:
        self.terms: list[CustomTerm] = [
            match.term(place, teacher, student).to(device) for place, match in enumerate(matches)
        ]
        self.student = self.teacher = None
        if self.terms:
            self.student = Capture(student, (term.layer_student for term in self.terms), "student")
            self.teacher = Capture(teacher, (term.layer_teacher for term in self.terms), "teacher")

    def trained_modules(self) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        """Return the projections that are modules, each with the options of its optimizer group."""
        return ((term.projection, term.options) for term in self.terms if isinstance(term.projection, nn.Module))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Install the capture hooks for a run."""
        with ExitStack() as stack:
            self._enter(stack, "hooked")
            yield

    def read_into(self, stack: ExitStack) -> None:
        """Capture the modules' outputs until ``stack`` closes."""
        self._enter(stack, "reading")

    def _enter(self, stack: ExitStack, name: str) -> None:
        for capture in (self.student, self.teacher):
            if capture is not None:
                context: AbstractContextManager[Any] = capture.hooked() if name == "hooked" else capture.reading()
                stack.enter_context(context)

    def values(self, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, float]]:
        """Yield the name, unweighted value and weight of each match."""
        if self.student is None or self.teacher is None:
            return
        ours = self.student.join(Outputs(inputs_mask=student.get("inputs_mask")))
        theirs = self.teacher.join(Outputs(inputs_mask=teacher.get("inputs_mask")))
        batch = Batch(ours, (theirs,), 0.0, 0, 0)
        for term in self.terms:
            value = term.value(batch, term.weight)
            yield f"unweighted_{term.name}", value.value, value.weight


__all__ = ["GeneralDistiller"]


class GeneralDistiller(BasicDistiller):
    """One teacher, one task: kd loss, intermediate matches, custom matches and hard-label loss, each if configured.

    Raises: ``EntryError``, ``ConfigError`` for a loss or a module that does not exist.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Any,
        model_S: nn.Module,
        adaptor_T: Any,
        adaptor_S: Any,
        custom_matches: Iterable[CustomMatch] | None = None,
    ) -> None:
        super().__init__(train_config, distill_config, model_T, model_S, adaptor_T, adaptor_S)
        matches = distill_config.intermediate_matches
        self.projs, self.projs_group = make_projections(matches, train_config.device)
        self.match_losses = find_losses(matches)
        self.match_names = log_names(matches)
        for module in modules_of(self.match_losses):
            module.to(train_config.device)
        self.custom_matches = CustomMatches(custom_matches or (), model_T, model_S, train_config.device)

    @property
    def is_caching(self) -> bool:
        """Always false: matches need the teacher's features."""
        return False

    def trained_modules(self) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        """Yield each module trained with the student, and the options of its optimizer group."""
        yield from zip(self.projs, self.projs_group, strict=True)
        yield from self.custom_matches.trained_modules()
        yield from ((module, {}) for module in modules_of(self._trained_entries()))

    def losses(self) -> list[Any]:
        """Return the losses of the config."""
        return [self.kd_loss, *self.match_losses]

    def _trained_entries(self) -> list[Any]:
        return [*self.losses(), self.d_config.temperature_scheduler]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wrap a run, with hooks for the custom matches."""
        with super().running(), self.custom_matches.hooked():
            yield

    def train_on_batch(self, batch: Any, args: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the loss of a batch, and its terms by their names in the log."""
        with ExitStack() as stack:
            self.custom_matches.read_into(stack)
            return super().train_on_batch(batch, args)

    def compute_loss(self, results_S: Any, results_T: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the loss and its terms: kd loss if both adaptors returned logits, matches, hard-label loss."""
        total: Any = 0
        terms: dict[str, Any] = {}
        if "logits" in results_S and "logits" in results_T:
            terms["unweighted_kd_loss"] = kd_loss(self.d_config, self.kd_loss, results_S, [results_T], self.progress)
            total = weighted(total, terms["unweighted_kd_loss"], self.d_config.kd_loss_weight)
        elif self.d_config.kd_loss_weight and ("logits" in results_S or "logits" in results_T):
            warn_once(f"there is no kd loss: adaptor_{'T' if 'logits' in results_S else 'S'} returned no logits")
        for name, match, loss, projection in zip(
            self.match_names, self.d_config.intermediate_matches, self.match_losses, self.projs, strict=True
        ):
            terms[name] = match_value(match, loss, projection, results_S, results_T, self.progress)
            total = weighted(total, terms[name], match.weight)
        for name, value, weight in self.custom_matches.values(results_S, results_T):
            terms[name] = value
            total = weighted(total, value, weight)
        return self.add_hard_label_loss(total, terms, results_S)
