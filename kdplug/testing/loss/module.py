"""Tests of a loss as a module: state, parameters, compilation."""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdplug.contracts.loss import RANDOM
from kdplug.testing.law import advise, are_finite, broken, graph_without_numbers, is_close, number, unless, where
from kdplug.testing.loss.case import LossCase, gradients_of, read_outcome
from kdplug.testing.sample import seeded

_OWN = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})

_REGISTER = "Register it in __init__ as an nn.Parameter or a buffer, and modules in an nn.ModuleList"


def _loose(value: Any) -> str:
    """Say what is wrong with an attribute that holds tensors or modules without registering them; "" if nothing is."""
    if isinstance(value, Tensor):
        return "is a plain tensor"
    if isinstance(value, (list, tuple, deque, Mapping)):
        inner = list(value.values()) if isinstance(value, Mapping) else list(value)
        if any(isinstance(one, nn.Module) for one in inner):
            return "is a plain container of modules"
        if any(_loose(one) for one in inner):
            return "is a plain container of tensors"
    return ""


def _leaves(value: Tensor) -> list[Tensor]:
    """Return the tensors that ``value`` has a gradient for."""
    seen, nodes, found = set(), [value.grad_fn], []
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        nodes += [one for one, _ in node.next_functions]
    return found


def is_class(laws: type[LossCase]) -> bool:
    return laws.is_class()


class ModuleLaws(LossCase):
    """Laws on uses of a loss other than calling it."""

    @where(is_class)
    def test_it_is_a_module_whose_tensors_are_registered(self) -> None:
        """Catches a tensor kept as a plain attribute or in a list, or created in ``forward``: it stays on the CPU, is not
        trained and is missing from every checkpoint.
        """
        component = self.build_in(torch.float64)
        module: Any = component.target
        if not isinstance(module, nn.Module):
            broken(f"is a class but not a torch.nn.Module: {type(module).__name__}. Derive it from torch.nn.Module")
        self._check_registered(module)
        self.evaluate(self.sample(), component)
        self._check_registered(module)

    def _check_registered(self, module: nn.Module) -> None:
        for path, part in module.named_modules():
            for name, value in vars(part).items():
                if name not in _OWN and (what := _loose(value)):
                    broken(f"{'.'.join(filter(None, (path, name)))} {what}. {_REGISTER}")

    def test_it_trains_its_parameters_alone(self) -> None:
        """Catches a learned tensor in a variable of the Python module or a closure, which no optimizer or checkpoint gets."""
        component = self.build_in(torch.float64)
        target: Any = component.target
        outcome = self.evaluate(self.sample(), component)
        registered = {id(tensor) for tensor in target.parameters()} if isinstance(target, nn.Module) else set()
        if any(id(leaf) not in registered for leaf in _leaves(outcome.value)):
            broken(f"its value has a gradient for a tensor that is not one of its parameters. {_REGISTER} of a class")

    @advise("Keep all state in buffers that are saved, not in buffers with persistent=False, Python numbers or lists")
    @where(is_class)
    def test_a_copy_and_a_loaded_state_go_on_alike(self) -> None:
        """Catches state missing from checkpoints, so that a resumed run differs."""
        sample, used = self.sample(), self.build_in(torch.float64)
        for _ in range(2):
            self.evaluate(sample, used)
        original: Any = used.target
        duplicate = copy.deepcopy(original)
        loaded: Any = self.build_in(torch.float64, seed=7).target
        loaded.load_state_dict(original.state_dict(), strict=True)
        copies = {"a deepcopy": duplicate, "a module that loaded the state_dict": loaded}
        values = {what: self._value_of(module) for what, module in copies.items()}
        expected = self._value_of(original)
        for what, value in values.items():
            if not is_close(value, expected):
                broken(f"{what} gives {number(value):.6g}, but the original gives {number(expected):.6g}")

    @advise("Write to buffers only if self.training")
    @where(is_class)
    def test_no_buffer_changes_in_eval_mode(self) -> None:
        """Catches a memory or a running mean that an evaluation fills with its own data, so that training then reads them."""
        component = self.build_in(torch.float64)
        module: Any = component.target
        module.eval()
        before = {name: tensor.clone() for name, tensor in module.named_buffers()}
        with torch.no_grad():
            for sample in self.samples():
                self.evaluate(sample, component)
        changed = [
            name
            for name, tensor in module.named_buffers()
            if name not in before or not torch.equal(tensor.nan_to_num(), before[name].nan_to_num())
        ]
        if changed:
            broken(f"changes a buffer in eval mode: {', '.join(changed)}")

    def _value_of(self, module: Any) -> Tensor:
        values = self.sample().values()
        with seeded(1):
            return read_outcome(module(*(values[name] for name in self._found.inputs))).value.detach()

    @advise("Create each parameter in __init__ as an nn.Parameter, and use it in forward without detach()")
    @where(is_class)
    def test_every_parameter_is_trained(self) -> None:
        """Catches a learned variance that is never trained because it is a buffer, detached, or unused."""
        component = self.build_in(torch.float64)
        module: Any = component.target
        parameters = dict(module.named_parameters())
        for name in self.trains:
            if name not in parameters:
                broken(
                    f"{name} is declared as trained, but is not a parameter. Its parameters: "
                    f"{', '.join(parameters) or 'none'}"
                )
        frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
        if frozen:
            broken(
                f"has parameters that do not require a gradient: {', '.join(frozen)}. Make them buffers if they should not be trained"
            )
        gradients = gradients_of(self.evaluate(self.sample(), component).value, tuple(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            if not are_finite([gradient]):
                broken(f"the gradient of parameter {name} is not finite")
            if not bool(gradient.any()):
                broken(f"the gradient does not reach parameter {name}, so it would never be trained")

    @advise("Compute with tensors, as torch.where does, without .item(), float() and branches on values")
    @unless(RANDOM)
    def test_torch_compile_traces_it_whole(self) -> None:
        """Catches branches on values and printing, which break the compiled graph, and ``.item()``, which waits for the device."""
        for sample in self.samples():
            component, expected = self.build_in(torch.float64), self.evaluate(sample).value
            arguments = [sample.values()[name] for name in component.inputs]
            torch.compiler.reset()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    compiled: Any = torch.compile(component.target, fullgraph=True, backend=graph_without_numbers)
                    found = read_outcome(compiled(*arguments)).value
            except Exception as error:
                broken(f"torch.compile cannot trace it without graph breaks: {_first_lines(error)}")
            finally:
                torch.compiler.reset()
            if not is_close(found, expected):
                broken("gives a different value when compiled")


def _first_lines(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:3] if line.strip())
