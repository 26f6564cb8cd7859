"""Tests that every projection must pass."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

from kdplug.objective.projection import declared_axis
from kdplug.testing.law import Laws, advise, are_finite, broken, graph_without_numbers, is_close, where
from kdplug.testing.sample import draw, seeded

_AXIS = (
    "It maps the last axis unless it declares another: a projection of feature maps [B, C, H, W] sets axis = 1 in the class, "
    "or as an attribute of the function"
)


class ProjectionLaws(Laws):
    """Tests that every projection must pass, for pytest.

    ::

        class TestMyProjection(ProjectionLaws):
            entry = "myprojection"
    """

    widths: ClassVar[tuple[tuple[int, int], ...]] = ((3, 5), (5, 3), (4, 4))
    """Pairs of student and teacher width to try."""

    leading: ClassVar[tuple[tuple[int, ...], ...]] = ((2,), (2, 4))
    """Leading axes to try before the width in the shape of a feature; unused if the projection declares ``axis = 1``."""

    trailing: ClassVar[tuple[int, ...]] = (4, 3)
    """Axes after the width of a projection with ``axis = 1``, which maps ``[batch, channels, *trailing]``."""

    tokenwise: ClassVar[bool] = True
    """Declares that each token is projected on its own, so that padding cannot affect other tokens."""

    @classmethod
    def kind_of(cls) -> str:
        return "projections"

    def first_law(self) -> tuple[str, Callable[[], object]]:
        in_dim, out_dim = self.widths[0]
        return (
            "test_it_brings_the_students_width_to_the_teachers",
            lambda: self.module(in_dim, out_dim)(self.feature(in_dim)),
        )

    @property
    def axis(self) -> int:
        """The axis that the projection declares: the last one, or 1 for feature maps."""
        return declared_axis(self._found.load(), self._found.qualified)

    def shapes(self, width: int) -> list[tuple[int, ...]]:
        """Return the shapes of features to try.

        An axis from the front comes after as many others, and before ``trailing``.
        """
        if self.axis < 0:
            return [(*leading, width, *self.trailing[: -self.axis - 1]) for leading in self.leading]
        return [(*(2, 3, 5, 4)[: self.axis], width, *self.trailing)]

    def module(self, in_dim: int, out_dim: int, seed: int = 0) -> nn.Module:
        """Build a float64 projection whose parameters are drawn from ``seed``."""
        with seeded(seed):
            made = self.build()(in_dim=in_dim, out_dim=out_dim)
        if not isinstance(made, nn.Module):
            broken(f"returned a {type(made).__name__}: a projection must be an nn.Module")
        return made.double()

    def feature(self, width: int) -> Tensor:
        """Return a float64 student feature."""
        return draw(self.shapes(width)[-1], 3)

    @advise("Build layers from in_dim to out_dim")
    def test_it_brings_the_students_width_to_the_teachers(self) -> None:
        """Catches the two widths swapped, and a layer that accepts no batch axes, or only some."""
        for in_dim, out_dim in self.widths:
            for given, expected in zip(self.shapes(in_dim), self.shapes(out_dim), strict=True):
                try:
                    found = self.module(in_dim, out_dim)(draw(given, 3))
                except RuntimeError as error:
                    broken(f"with in_dim={in_dim} and out_dim={out_dim} it fails on {list(given)}: {error}. {_AXIS}")
                if tuple(found.shape) != expected:
                    broken(
                        f"with in_dim={in_dim} and out_dim={out_dim} it maps {list(given)} to {list(found.shape)}. "
                        f"in_dim is the student's width, out_dim the teacher's. {_AXIS}"
                    )
                if not are_finite([found]):
                    broken("its output is not finite")

    @advise("Use each parameter in forward, without detach(), and remove the others")
    def test_gradient_reaches_the_student_and_every_parameter(self) -> None:
        """Catches a layer that is created but never used, or frozen, and so is never trained."""
        in_dim, out_dim = self.widths[0]
        module, feature = self.module(in_dim, out_dim), self.feature(in_dim).requires_grad_()
        named = dict(module.named_parameters())
        frozen = [name for name, parameter in named.items() if not parameter.requires_grad]
        if frozen:
            broken(
                f"has parameters that do not require a gradient, so they would never be trained: {', '.join(frozen)}"
            )
        value = module(feature).square().sum()
        found = torch.autograd.grad(value, (feature, *named.values()), materialize_grads=True)
        for name, gradient in zip(("the student", *(f"parameter {name}" for name in named)), found, strict=True):
            if not are_finite([gradient]) or not bool(gradient.any()):
                broken(f"the gradient does not reach {name}")

    @advise("Remove detach() and in-place operations, or correct the backward method")
    def test_gradient_agrees_with_finite_differences(self) -> None:
        """Catches a wrong hand-written backward pass."""
        in_dim, out_dim = self.widths[0]
        module = self.module(in_dim, out_dim)
        try:
            torch.autograd.gradcheck(
                module, (self.feature(in_dim).requires_grad_(),), atol=1e-5, rtol=1e-4, fast_mode=True
            )
        except GradcheckError as error:
            broken(f"the gradient does not match the value: {error}")

    def test_two_projections_share_nothing(self) -> None:
        """Catches one module, created on import of the plugin, that serves every match."""
        in_dim, out_dim = self.widths[0]
        one, two = self.module(in_dim, out_dim), self.module(in_dim, out_dim)
        shared = {id(part) for part in one.modules()} & {id(part) for part in two.modules()}
        tensors = {tensor.data_ptr() for tensor in one.state_dict().values()}
        if shared or tensors & {tensor.data_ptr() for tensor in two.state_dict().values()}:
            broken("two projections share modules or parameters: create new ones at each call")

    @advise("Normalize over the width instead of the batch, or declare tokenwise = False")
    @where(lambda laws: laws.tokenwise)
    def test_each_token_is_projected_on_its_own(self) -> None:
        """Catches a normalization over the batch, through which padding affects other tokens."""
        in_dim, out_dim = self.widths[0]
        feature, module = self.feature(in_dim), self.module(in_dim, out_dim)
        spoilt = feature.clone()
        spoilt[-1] = torch.nan
        if not torch.equal(module(spoilt)[:-1], module(feature)[:-1]):
            broken("one example's feature changed the projection of the others")

    @advise("Use relu instead of relu_, and do not set inplace=True on the input")
    def test_its_input_is_not_modified(self) -> None:
        """Catches an in-place activation on the student's own hidden state."""
        in_dim, out_dim = self.widths[0]
        feature = self.feature(in_dim)
        with torch.no_grad():
            self.module(in_dim, out_dim)(feature)
        if not torch.equal(feature, self.feature(in_dim)):
            broken("modified the student's feature in place")

    @advise("Keep intermediate values within the range of float16, or compute them in float32")
    def test_half_precision_autocast_stays_near_float32(self) -> None:
        """Catches an activation that overflows, a parameter outside autocast."""
        in_dim, out_dim = self.widths[0]
        module, feature = self.module(in_dim, out_dim).float(), self.feature(in_dim).float()
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype=dtype):
                found = module(feature.to(dtype))
            if not is_close(found, module(feature), 0.05):
                broken(f"under {str(dtype).removeprefix('torch.')} autocast its output is far from that in float32")

    @advise("Keep all state in parameters and in buffers that are saved")
    def test_a_copy_and_a_loaded_state_project_alike(self) -> None:
        """Catches state missing from checkpoints."""
        in_dim, out_dim = self.widths[0]
        module, other, feature = self.module(in_dim, out_dim), self.module(in_dim, out_dim, 7), self.feature(in_dim)
        other.load_state_dict(module.state_dict(), strict=True)
        for what, copied in (("a deepcopy", copy.deepcopy(module)), ("a module that loaded the state_dict", other)):
            if not is_close(copied(feature), module(feature)):
                broken(f"{what} projects differently from the original")

    @advise("Compute with tensors, as torch.where does, without .item(), float() and branches on values")
    def test_torch_compile_traces_it_whole(self) -> None:
        """Catches branches on values and printing, which break the compiled graph, and ``.item()``, which waits for the device."""
        in_dim, out_dim = self.widths[0]
        module, feature = self.module(in_dim, out_dim), self.feature(in_dim)
        expected = module(feature)
        torch.compiler.reset()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compiled: Any = torch.compile(module, fullgraph=True, backend=graph_without_numbers)
                found = compiled(feature)
        except Exception as error:
            broken(f"torch.compile cannot trace it without graph breaks: {str(error).splitlines()[0]}")
        finally:
            torch.compiler.reset()
        if not is_close(found, expected):
            broken("gives a different result when compiled")
