"""Language models that return the factors of their logits instead of the product."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import kdplug

_PROBED = 4
_FAR = 100.0


class Heads:
    """Switch for skipping the heads of a task's models."""

    def __init__(self) -> None:
        self.are_left_out = True

    @contextmanager
    def multiplied_out(self) -> Iterator[None]:
        """Make models return ordinary logits within the block."""
        before, self.are_left_out = self.are_left_out, False
        try:
            yield
        finally:
            self.are_left_out = before

    def leave_out(self, model: Any, side: str) -> None:
        """Make ``model`` return its logits as ``kdplug.FactoredLogits``.

        Raises: ``ConfigError`` if the model's logits are not a product that ``FactoredLogits`` can represent.
        """
        check_head(model, side)
        head = FactoredHead(model, self)
        model.base_model.register_forward_hook(head.keep)
        model.register_forward_pre_hook(head.ask, with_kwargs=True)
        model.register_forward_hook(head.factor)
        head.check(side)


class FactoredHead:
    """Hooks on one model: its head runs on no positions, and the input of the head is returned in ``FactoredLogits``.

    The head stays in the model under its own name and is still called, so code that wraps or hooks modules is
    unaffected.
    """

    def __init__(self, model: Any, heads: Heads) -> None:
        self._model = model
        self._heads = heads
        self._hidden: Tensor | None = None

    def keep(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Forward hook of the body: keep its last hidden state."""
        self._hidden = output[0] if self._heads.are_left_out else None

    def ask(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Pre-forward hook of the model: request logits at no position."""
        if not self._heads.are_left_out:
            return args, kwargs
        nowhere = torch.empty(0, dtype=torch.long, device=self._linear.weight.device)
        return args, {**kwargs, "logits_to_keep": nowhere}

    def factor(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Forward hook of the model: replace the logits by their factors."""
        if self._heads.are_left_out:
            assert self._hidden is not None
            scale, softcap = numbers_of(self._model.config)
            linear = self._linear
            output.logits = kdplug.FactoredLogits(self._hidden, linear.weight, linear.bias, scale, softcap)
            self._hidden = None
        return output

    @torch.no_grad()
    def check(self, side: str) -> None:
        """Run the model once on a few tokens, with the head's output replaced by numbers far from 0.

        Raises: ``ConfigError`` if the head's input is not the last hidden state, or its output is transformed further.
        """
        seen: list[Tensor] = []

        def probe(_module: nn.Module, args: Any, output: Tensor) -> Tensor:
            found = torch.linspace(-_FAR, _FAR, output.numel(), dtype=output.dtype, device=output.device)
            seen.extend((args[0], found.view_as(output)))
            return seen[-1]

        model, was_training = self._model, self._model.training
        ids = torch.arange(_PROBED, device=self._linear.weight.device).unsqueeze(0)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        hook = self._linear.register_forward_hook(probe)
        model.eval()
        try:
            with self._heads.multiplied_out():
                hidden, logits = model.base_model(**inputs)[0], model(**inputs).logits
        finally:
            hook.remove()
            model.train(was_training)
        given, raw = seen
        is_same = hidden.shape == given.shape and torch.allclose(hidden, given, atol=1e-5, rtol=1e-4)
        if not is_same or not torch.allclose(logits, finished(raw, *numbers_of(model.config)), atol=1e-4, rtol=1e-4):
            raise refusal(
                model, side, "does more between its last layer and its logits than a linear map, a scale and a softcap"
            )

    @property
    def _linear(self) -> Any:
        return self._model.get_output_embeddings()


def check_head(model: Any, side: str) -> None:
    """Raise ``ConfigError`` for a model whose head cannot be skipped."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise refusal(model, side, "has no logits_to_keep, so its head cannot be skipped")
    if type(model.get_output_embeddings()) is not nn.Linear or model.base_model is model:
        raise refusal(model, side, "does not consist of a body and a linear head")


def numbers_of(config: Any) -> tuple[float | None, float | None]:
    """Return the scale and the softcap of a model's logits, which model families name differently."""
    text = config.get_text_config()
    scale = getattr(text, "logit_scale", None)  # Cohere
    divisor = getattr(text, "logits_scaling", None)  # Granite
    softcap = getattr(text, "final_logit_softcapping", None)  # Gemma
    return (1 / divisor if scale is None and divisor else scale), softcap


def finished(raw: Tensor, scale: float | None, softcap: float | None) -> Tensor:
    """Return a head's output, scaled and capped."""
    scaled = raw if scale is None else raw * scale
    return scaled if softcap is None else (scaled / softcap).tanh() * softcap


def refusal(model: nn.Module, side: str, why: str) -> kdplug.ConfigError:
    """Return the error for a model that cannot be factored."""
    return kdplug.ConfigError(f"the {side}, a {type(model).__name__}, {why}. Write factored: false", field="factored")
