"""Look up a model's modules by path, and suggest corrections for wrong paths."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdplug.config.layer import Layer, LayerPath, Layers, TensorPath, in_list, read_path, read_tensor_path
from kdplug.errors import ConfigError, RunError, did_you_mean

Side = Literal["student", "teacher"]

WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Path components that torch adds: ``torch.compile``, checkpoint wrappers, FSDP."""
_SHOWN = 8


class Modules:
    """The modules of a model, each under every path it has; paths omit the names of torch's own wrappers.

    The path of a wrapped module means the wrapper, which the model calls. Messages call the model ``owner``, by default
    its side.
    """

    def __init__(self, model: nn.Module, side: Side, owner: str = "") -> None:
        self.side: Side = side
        self._owner = owner or side
        self._model = model
        self._found: dict[str, nn.Module] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            path = ".".join(part for part in name.split(".") if part and part not in WRAPPERS)
            if path:
                self._found.setdefault(path, module)

    def __getitem__(self, path: str) -> nn.Module:
        return self._found[path]

    def find(self, path: LayerPath) -> tuple[str, ...]:
        """Return the modules that a path or glob matches, in model order.

        Raises: ``ConfigError`` if there is none, with the nearest paths.
        """
        found = tuple(name for name in self._found if path.matches(name))
        return found or self._none(path.modules)

    def name_of(self, module: nn.Module) -> str:
        """Return the first path of a module.

        Raises: ``ConfigError`` if it is not part of the model.
        """
        for name, one in self._found.items():
            if one is module:
                return name
        raise ConfigError(f"this {type(module).__name__} is not part of the {self._owner}. Pass one of its modules")

    def expand(self, layers: Layers, *, listed: bool) -> Layers:
        """Check each path and expand each glob.

        Raises: ``ConfigError`` if a path does not exist, or a glob outside a list matches several modules.
        """
        if listed:
            return tuple(one for place, layer in enumerate(in_list(layers)) for one in self._at(layers, place, layer))
        found = self._named(in_list(layers)[0])
        if len(found) > 1:
            raise ConfigError(
                f"{layers!r} matches {len(found)} modules of the {self._owner}: {_some(found)}. A match of single layers "
                "needs a single module. Name one, use lists for a loss that takes several, or a layer_map for one "
                "match per module"
            )
        return found[0]

    def tensor(self, text: str) -> HeldTensor:
        """Return the parameter or buffer at a path.

        Raises: ``ConfigError`` if there is none, with the nearest paths, or if it holds no numbers that a loss can read.
        """
        path = read_tensor_path(text)
        if path.module and path.module not in self._found:
            self._none(path.module)
        found = HeldTensor(self._model, path, f"the {self._owner}'s {text}")
        there = [str(one) for one in _tensors(path.module, _at(self._model, path.module))]
        if text not in there:
            where = f"module {path.module!r}" if path.module else "model itself"
            near = did_you_mean(text, there)
            holds = (
                f" The module holds {_some(tuple(there))}."
                if there
                else " The module itself has no parameters or buffers."
            )
            raise ConfigError(f"no {path.kind} {path.name!r} in the {self._owner}'s {where}.{near or holds}")
        found.check()
        return found

    def _at(self, layers: Layers, place: int, layer: Layer) -> tuple[Layer, ...]:
        try:
            return self._named(layer)
        except ConfigError as error:
            raise error.at(place) if isinstance(layers, tuple) else error from None

    def _named(self, layer: Layer) -> tuple[Layer, ...]:
        if isinstance(layer, int):
            return (layer,)
        path = read_path(layer)
        return tuple(str(path.on(name)) for name in self.find(path)) if path.is_glob else self._checked(path, layer)

    def _checked(self, path: LayerPath, layer: str) -> tuple[str]:
        if path.modules not in self._found:
            self._none(path.modules)
        return (layer,)

    def _none(self, wanted: str) -> tuple[str, ...]:
        parent = wanted.rpartition(".")[0]
        near = [] if parent in self._found else self._near(wanted)
        means = f" Did you mean {' or '.join(map(repr, near))}?" if near else self._below(wanted)
        index = (
            f" For layer {wanted} of the adaptor's output, write {wanted} without quotes." if wanted.isdigit() else ""
        )
        raise ConfigError(f"no module {wanted!r} in the {self._owner}.{means}{index}")

    def _near(self, wanted: str) -> list[str]:
        """Return paths with the same ending as ``wanted``, or else paths similar to it."""
        ends = [name for name in self._found if name.endswith(f".{wanted}")]
        return ends[:3] or get_close_matches(wanted, self._found, n=2, cutoff=0.75)

    def _below(self, wanted: str) -> str:
        """Describe the modules at the point where the path stops matching."""
        start, rest = "", wanted.split(".")
        while start + rest[0] in self._found:
            start += f"{rest.pop(0)}."
        children = dict.fromkeys(name[len(start) :].split(".")[0] for name in self._found if name.startswith(start))
        return (
            f" {start[:-1]!r} holds {_some(tuple(children))}."
            if start
            else f" The {self._owner} holds {_some(tuple(children))}."
        )


def _inside(module: nn.Module) -> nn.Module:
    """Return the module inside torch's own wrappers, which hold its parameters."""
    while (wrapped := next((one for name, one in module.named_children() if name in WRAPPERS), None)) is not None:
        module = wrapped
    return module


def _at(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a path, inside torch's own wrappers. Raises: ``KeyError`` if there is none."""
    module = _inside(model)
    for part in path.split(".") if path else ():
        module = _inside(module._modules[part])  # type: ignore[arg-type]  # noqa: SLF001
    return module


def _tensors(path: str, module: nn.Module) -> list[TensorPath]:
    own = module.named_parameters(recurse=False, remove_duplicate=False)
    buffers = module.named_buffers(recurse=False, remove_duplicate=False)
    return [TensorPath(path, "parameter", name) for name, _ in own] + [
        TensorPath(path, "buffer", name) for name, _ in buffers
    ]


@dataclass(frozen=True, slots=True, eq=False)
class HeldTensor:
    """A parameter or buffer, looked up in the model at each call: a run may move or replace it, or its module."""

    model: nn.Module
    path: TensorPath
    shown: str

    def __call__(self) -> Tensor:
        """Return the tensor. Raises: ``RunError`` if the model no longer holds it whole."""
        try:
            module = _at(self.model, self.path.module)
            found = (module._parameters if self.path.kind == "parameter" else module._buffers).get(self.path.name)  # noqa: SLF001
        except (KeyError, AttributeError):  # no module, or None in its place
            found = None
        if found is None:
            raise RunError(
                f"{self.shown} was removed from its module after objective.connect(…), so no loss can read it. Change the "
                "model before connect, or name another parameter or buffer"
            )
        if hasattr(found, "full_tensor"):
            raise RunError(
                f"{self.shown} is sharded over the processes, so no loss can read it. Use DDP, or a loss that reads only "
                "features and logits"
            )
        return found

    def check(self) -> None:
        """Raise ``ConfigError`` for a tensor without memory, and for numbers that a loss cannot read."""
        found = self()
        if is_lazy(found) or found.is_meta:
            state = (
                "has no shape yet: run the model once first"
                if is_lazy(found)
                else "is on the meta device: load its values first"
            )
            raise ConfigError(f"{self.shown} {state}")
        is_float = found.is_floating_point() and found.dtype.itemsize > 1
        is_whole = not (found.is_floating_point() or found.is_complex() or found.is_quantized)
        if found.layout is not torch.strided or not (is_float or (self.path.kind == "buffer" and is_whole)):
            raise ConfigError(
                f"{self.shown} must be a dense floating-point tensor of at least 16 bits, got {found.layout}, {found.dtype}. "
                "If the model is quantized, load it without quantization"
            )


def _some(names: tuple[object, ...]) -> str:
    shown = ", ".join(map(str, names[:_SHOWN]))
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown or "no modules"
