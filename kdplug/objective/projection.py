"""Projection of a student feature to the teacher's width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdplug.errors import KdplugError, RunError, ShapeError, SignatureError
from kdplug.host import registry
from kdplug.objective.numerics import full, is_autocast_on, is_half

if TYPE_CHECKING:
    from kdplug.config.match import ProjectionSpec


@dataclass(frozen=True, slots=True)
class ProjectionPlan:
    """Arguments of a projection's constructor.

    A width is ``None`` if taken from a batch. ``options`` are those of its optimizer group. ``axis`` is the axis of a
    feature that the projection maps.
    """

    make: Callable[..., Any]
    inputs: tuple[str, ...]
    owner: str
    in_dim: int | None
    out_dim: int | None
    options: Mapping[str, Any]
    axis: int = -1

    @classmethod
    def from_spec(cls, spec: ProjectionSpec) -> ProjectionPlan:
        """Load the projection that ``spec`` names; its widths may be ``"auto"``."""
        try:
            component = registry.projections.build(spec.component)
        except KdplugError as error:
            raise error.at("proj") from error.__cause__
        in_dim = None if spec.in_dim == "auto" else spec.in_dim
        out_dim = None if spec.out_dim == "auto" else spec.out_dim
        owner, axis = component.entry.qualified, declared_axis(component.entry.load(), component.entry.qualified)
        return cls(component.target, component.inputs, owner, in_dim, out_dim, dict(spec.options), axis)

    @property
    def is_complete(self) -> bool:
        return self.in_dim is not None and self.out_dim is not None

    def build(self, student: tuple[Tensor, ...] = (), teacher: tuple[Tensor, ...] = ()) -> nn.Module:
        """Build the projection; unconfigured widths are those of the features.

        It is created on the student feature's device, in its dtype, or in float32 for a half-precision feature.

        Raises: ``ShapeError`` if the listed layers differ in width; ``SignatureError`` if the entry does not return a
        module.
        """
        in_dim = self.in_dim if self.in_dim is not None else self._shared_width(student, "student")
        out_dim = self.out_dim if self.out_dim is not None else self._shared_width(teacher, "teacher")
        values = {"in_dim": in_dim, "out_dim": out_dim}
        module = self.make(*map(values.__getitem__, self.inputs))
        if not isinstance(module, nn.Module):
            raise SignatureError(f"{self.owner} must return an nn.Module, got {type(module).__name__}", field="proj")
        return module.to(student[0].device, full(student[0]).dtype) if student else module

    def check(self, student: Tensor) -> None:
        """Raise ``ShapeError`` if the student feature's width differs from the configured one."""
        if self.in_dim is not None and (width := self.width(student)) != self.in_dim:
            raise ShapeError(
                f"the student feature is {width} wide {list(student.shape)}, "
                f"but the projection takes {self.in_dim} (the student's width comes first)",
                field="proj",
            )

    def width(self, feature: Tensor) -> int:
        """Return the size of the axis that the projection maps.

        Raises: ``ShapeError`` if the feature has no such axis.
        """
        return width_along(feature, self.axis, self.owner)

    def width_after(self, teacher: tuple[Tensor, ...]) -> int:
        """Return the width of the projection's output."""
        return self.out_dim if self.out_dim is not None else self._shared_width(teacher, "teacher")

    def _shared_width(self, features: tuple[Tensor, ...], side: str) -> int:
        widths = sorted({self.width(feature) for feature in features})
        if len(widths) != 1:
            raise ShapeError(
                f"the {side}'s layers are {widths} wide, but they share one projection. Write a match for each width",
                field="proj",
            )
        return widths[0]

    def explain(self, teacher: Tensor) -> str:
        """Explain a width mismatch between the projection's output and the teacher, for a loss that raised."""
        if self.out_dim is None or (width := self.width(teacher)) == self.out_dim:
            return ""
        return f" (the projection's output is {self.out_dim} wide, but the teacher feature is {width} wide)"


def declared_axis(entry: Any, owner: str) -> int:
    """Return the axis that a projection or loss declares as ``axis``; by default the last.

    Raises: ``SignatureError`` unless it is a whole number.
    """
    axis = getattr(entry, "axis", -1)
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise SignatureError(
            f"{owner} declares axis = {axis!r}, but axis must be a whole number, such as 1 for [B, C, H, W]"
        )
    return axis


def width_along(feature: Tensor, axis: int, owner: str, *, field: str = "proj") -> int:
    """Return the size of ``axis``.

    Raises: ``ShapeError`` if the feature has no such axis, with the key that names the owner as its field.
    """
    if not -feature.dim() <= axis < feature.dim():
        raise ShapeError(
            f"{owner} declares axis {axis}, but a feature of shape {list(feature.shape)} has no such axis. Choose layers whose "
            "features have this axis",
            field=field,
        )
    return feature.shape[axis]


def axis_hint(axis: int, widths: Mapping[str, int | list[int]], features: Sequence[Tensor]) -> str:
    """Suggest ``axis = 1`` for a class that takes the sizes of the last axis of feature maps; "" if it takes no such sizes."""
    if axis != -1 or not widths or all(feature.dim() < 4 for feature in features):
        return ""
    sizes = " and ".join(f"{name}={size}" for name, size in widths.items())
    are = "are the sizes" if len(widths) > 1 else "is the size"
    return f"{sizes} {are} of the last axis; for [batch, channels, height, width] set axis = 1 in the class"


def project(module: nn.Module, feature: Tensor) -> Tensor:
    """Project the feature under the ambient autocast.

    Without autocast, a half-precision feature is cast to the parameters' precision.
    """
    if is_half(feature) and not is_autocast_on(feature.device.type):
        feature = feature.to(_dtype(module, full(feature).dtype))
    projected: Tensor = module(feature)
    return projected


def without_garbage(feature: Tensor, mask: Tensor) -> Tensor:
    """Return the feature with its non-finite values set to 0 where the mask is False.

    The loss ignores those positions, but the gradient of a projection's weight would still multiply them, and 0 times
    ``nan`` is ``nan``. Finite values are kept, since a loss may read a position regardless of the mask.

    Shapes: feature ``[*items, width]``, mask ``[*items]``; if they do not match, the feature is returned unchanged.
    """
    if mask.shape != feature.shape[:-1]:
        return feature
    return feature.masked_fill(~(mask.unsqueeze(-1) | feature.isfinite()), 0)


def not_built(owner: str = "", widths: Sequence[str] = ()) -> RunError:
    """The error for a projection, or the loss ``owner``, whose ``widths`` are not known yet."""
    given = "student=…, teacher=…"
    if "num_examples" in widths:
        what, given = f"{owner} takes num_examples, which is", f"{given}, num_examples=…"
    elif owner:
        what = f"{owner} takes the widths of the features, which are"
    else:
        what = "a projection has width 'auto', which is"
    return RunError(
        f"{what} not known yet. Call objective.materialize({given}) "
        "with the outputs for one batch before creating the optimizer",
        field="loss" if owner else "proj",
    )


def _dtype(module: nn.Module, default: torch.dtype) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), default)
