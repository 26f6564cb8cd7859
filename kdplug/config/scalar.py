"""Numbers, switches and text as a config takes them: nothing is converted, so ``"4"`` and ``true`` are no numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, Strict

Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False), AfterValidator(float)]
NonNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False), AfterValidator(float)]
Share = Annotated[float, Strict(), Field(ge=0, lt=1, allow_inf_nan=False), AfterValidator(float)]
"""A part of a whole, in [0, 1)."""

LARGEST = 2**31 - 1
"""The largest count or seed: what a 32-bit integer holds, which NumPy's generator, file formats and kernels can take."""

Count = Annotated[int, Strict(), Field(ge=1, le=LARGEST), AfterValidator(int)]
WholeNumber = Annotated[int, Strict(), Field(ge=0, le=LARGEST), AfterValidator(int)]
Processes = Annotated[int, Strict(), Field(ge=0, le=1024), AfterValidator(int)]
"""How many processes one process starts."""

Switch = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), Field(min_length=1, max_length=4096), AfterValidator(str)]
"""Text of at most as many characters as a path may have."""
