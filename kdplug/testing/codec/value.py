"""Tests of the values that a cache codec decodes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.testing.codec.case import CodecCase, Trip
from kdplug.testing.codec.content import kept_classes, probabilities
from kdplug.testing.codec.sample import tensors_of
from kdplug.testing.law import advise, broken

_CLOSE = 1e-4


class CodecValueLaws(CodecCase):
    """Losses use the decoded logits, and ``kdplug cache show`` prints their error."""

    def test_it_gives_back_logits_of_the_items(self) -> None:
        """Catches codes not converted to logits; the logarithm of a rounded 0; a class returned, and counted, twice."""
        codec = self.codec()
        found = self.trip(codec, self.given(codec)).found
        if not isinstance(found, (Tensor, SparseLogits, FactoredLogits)):
            broken(f"decode must return a tensor, SparseLogits or FactoredLogits, got {type(found).__name__}")
        if tuple(found.shape) != (self.items, self.classes):
            broken(f"decode must return logits {[self.items, self.classes]}, got {list(found.shape)}")
        if isinstance(found, Tensor) and not found.is_floating_point():
            broken(f"decode must return floating-point logits, got {found.dtype}: convert codes to logits")
        for name, tensor in tensors_of(found).items():
            bad = ~tensor.isfinite() if not isinstance(found, SparseLogits) else tensor.isnan() | (tensor == math.inf)
            if bool(bad.any()):
                broken(
                    f"decode returns non-finite {name} for ordinary logits: clamp the inputs of logarithms and divisions"
                )
        if isinstance(found, SparseLogits):
            _check_sparse(found)

    @advise(
        "Set error to the largest difference between the given and the decoded logits, as a Python number. Correct decode "
        "if this difference is large"
    )
    def test_it_is_off_by_no_more_than_it_says(self) -> None:
        """Catches an error measured before the last rounding, or in the unit of the codes; one class with another's
        logit; a bit packed at the wrong position.
        """
        codec = self.codec()
        for seed, size in ((0, 3.0), (1, 30.0), (2, 0.1)):
            trip = self.trip(codec, self.given(codec, seed=seed, size=size))
            if not isinstance(trip.kept.error, (int, float)) or not 0 <= trip.kept.error < math.inf:
                broken(f"error must be a number of at least 0, got {trip.kept.error!r}")
            self.check(trip, f"logits of about {size:g}")

    @advise("Return for each item the sum of softmax(logits / temperature) over its stored classes")
    def test_kept_mass_is_the_teachers_probability_on_the_classes_that_are_kept(self) -> None:
        """Catches a mass at temperature 1, of rounded probabilities, or of the whole batch; a missing one counts as 1."""
        codec = self.codec()
        for seed, size in ((0, 3.0), (1, 0.3)):
            trip = self.trip(codec, self.given(codec, seed=seed, size=size))
            if trip.kept.kept_mass is not None:
                _check_mass(trip.kept.kept_mass, self.items)
            _compare_mass(trip)

    @advise(
        "Store logits that are not divided by the temperature, or set uses_temperature = True and decode at the temperature "
        "that decode gets"
    )
    def test_the_temperature_matters_only_where_it_is_said(self) -> None:
        """Catches logits divided by the temperature, in a cache that is then read at another one."""
        codec = self.codec()
        given = self.given(codec)
        cold, warm = (self.trip(codec, given, temperature) for temperature in (1.0, 5.0))
        for trip in (cold, warm):
            found = trip.found
            if isinstance(found, SparseLogits) and found.temperature != trip.temperature:
                broken(f"decodes to logits at temperature {found.temperature:g} instead of {trip.temperature:g}")
            self.check(trip, f"logits at temperature {trip.temperature:g}")
        if not codec.uses_temperature:
            parts = [tensors_of(trip.kept.parts) for trip in (cold, warm)]
            for name, tensor in parts[0].items():
                if not torch.equal(tensor, parts[1][name]):
                    broken(f"part {name!r} depends on the temperature: uses_temperature must be True")

    @advise("Convert logits to float32 first")
    def test_half_precision_loses_no_more_than_it_says(self) -> None:
        """Catches a softmax or a sum in the teacher's own bfloat16, which has three decimal digits."""
        codec = self.codec()
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            given = self.given(codec, dtype=dtype)
            name = str(dtype).removeprefix("torch.")
            trip = self.trip_or_refusal(codec, given, f"logits in {name}")
            if trip is None:
                broken(f"rejects logits in {name}, which teachers use")
            self.check(trip, f"logits in {name}")
            _compare_mass(trip)

    @advise("Store bias, scale and softcap with the weight, and store dense logits or raise a SettingError in encode")
    def test_logits_in_factors_are_what_they_multiply_out_to(self) -> None:
        """Catches a forgotten bias, scale or soft cap; a teacher that returns ordinary logits."""
        codec = self.codec()
        if not codec.takes_factored:
            return
        ordinary: FactoredLogits = self.given(codec)
        forms: dict[str, Any] = {
            "without a bias": {"bias": None},
            "with a scale": {"scale": 0.5},
            "with a soft cap": {"softcap": 2.0},
        }
        for name, change in forms.items():
            self.check(self.trip(codec, replace(ordinary, **change)), f"logits in factors {name}")
        dense = self.trip_or_refusal(codec, ordinary.dense(), "dense logits")
        if dense is not None:
            self.check(dense, "dense logits")


def _check_sparse(found: SparseLogits) -> None:
    if found.weights is not None and bool((found.weights < 0).any()):
        broken("decode returns negative weights: return each class's share of the draws")
    ordered = found.ids.sort(-1).values
    if found.tail is not None and bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        broken("decode returns a class twice for an item: with a tail, classes must be distinct")


def _check_mass(mass: Any, items: int) -> None:
    if not isinstance(mass, Tensor) or mass.shape != (items,) or not mass.is_floating_point():
        broken(f"kept_mass must be a number for each of the {items} items, got {mass!r}")
    if not bool(((mass >= 0) & (mass <= 1 + 1e-5)).all()):
        broken(f"kept_mass must be a probability, got values from {float(mass.min()):.4g} to {float(mass.max()):.4g}")


def _compare_mass(trip: Trip) -> None:
    """Compare the declared mass with the true one, if the stored classes are known."""
    if not isinstance(trip.found, SparseLogits):
        return
    mass, left_out = trip.kept.kept_mass, ~kept_classes(trip.found)
    true = probabilities(trip.given, trip.temperature).masked_fill(left_out, 0.0).sum(-1)
    if mass is None:
        if float(true.min()) < 1 - _CLOSE:
            broken(
                f"stores classes with {float(true.min()):.4f} of the teacher's mass, but returns no kept_mass, which "
                "means 1"
            )
        return
    off = (mass.double() - true).abs()
    if float(off.max()) > _CLOSE:
        place = int(off.argmax())
        broken(
            f"kept_mass of item {place} is {mass[place]:.4f}, but the teacher's probability of those classes is {true[place]:.4f}"
        )
