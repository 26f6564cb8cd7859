"""Tables of inputs and adaptor keys."""

from __future__ import annotations

from kdplug.contracts.vocabulary import ALIASES, INPUTS, OUTPUT_KEYS
from kdplug.host.kind import KINDS

_SITES = {
    "kd": "loss on logits (`kd_loss_type`, a term without layers)",
    "match": "loss on features (`intermediate_matches`, a term with layers)",
}


def meanings() -> str:
    """Return a table of all inputs."""
    return "\n".join(["| input | value |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in INPUTS.items())])


def inputs_by_site() -> str:
    """Return a table of the inputs available at each place of a config."""
    rows = ["| place | inputs |", "|---|---|"]
    for kind in KINDS.values():
        for site, names in kind.slots.items():
            if names:
                rows.append(f"| {_SITES.get(site, kind.noun)} | {', '.join(f'`{name}`' for name in names)} |")
    for kind in KINDS.values():
        if kind.built_with:
            names = ", ".join(f"`{name}`" for name in kind.built_with)
            rows.append(f"| `__init__` of a {kind.noun} class | {names} |")
    return "\n".join(rows)


def aliases() -> str:
    """Return a table of TextBrewer's parameter names."""
    return "\n".join(["| alias | input |", "|---|---|", *(f"| `{old}` | `{new}` |" for old, new in ALIASES.items())])


def adaptor_keys() -> str:
    """Return the keys that an adaptor may return."""
    return ", ".join(f"`{key}`" for key in OUTPUT_KEYS)
