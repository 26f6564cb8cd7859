"""Numbers, switches and text as a config takes them: nothing is converted, so ``"4"`` and ``true`` are no numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, Strict

Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False), AfterValidator(float)]
NonNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False), AfterValidator(float)]
Share = Annotated[float, Strict(), Field(ge=0, lt=1, allow_inf_nan=False), AfterValidator(float)]
"""A part of a whole, in [0, 1)."""

Count = Annotated[int, Strict(), Field(ge=1), AfterValidator(int)]
WholeNumber = Annotated[int, Strict(), Field(ge=0), AfterValidator(int)]
Switch = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), Field(min_length=1), AfterValidator(str)]
