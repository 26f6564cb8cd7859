"""Which weights of a model belong to which layer."""

from __future__ import annotations

from torch import nn

import kdplug


def layers_path(model: nn.Module) -> str:
    """The path of the list that holds a transformers model's layers.

    Raises: ``ConfigError`` where there is no list of as many modules as the config says, or more than one.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    found = [
        path for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    outer = [path for path in found if not any(path.startswith(f"{other}.") for other in found)]
    if len(outer) != 1:
        what = f"{len(outer)} lists of {count} layers ({', '.join(outer)})" if outer else f"no list of {count} layers"
        raise kdplug.ConfigError(f"{type(model).__name__} has {what}, so its layers cannot be told", field="layers")
    path: str = outer[0]
    return path


def embeddings_path(model: nn.Module) -> str:
    """The path of the module whose weights are the embeddings, what belongs to them included: ``bert.embeddings``.

    It is the module that holds the input embeddings, unless that one holds the layers too; then it is the embeddings alone.
    """
    inputs = model.get_input_embeddings()  # type: ignore[operator]
    path: str = next(name for name, module in model.named_modules() if module is inputs)
    parent, layers = path.rpartition(".")[0], layers_path(model)
    while path and parent and not layers.startswith(f"{parent}."):
        path, parent = parent, parent.rpartition(".")[0]
    return path
