"""Cache codecs as they should be, for mutants to differ from in one thing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdplug import Encoded, FactoredLogits, Ragged, SettingError, SparseLogits
from kdplug.testing import CodecLaws


def require_finite(logits: Tensor) -> None:
    if not bool(logits.isfinite().all()):
        raise SettingError("logits are not finite")


class Rounded:
    """Logits in a byte each, between the lowest and the highest of their item."""

    uses_temperature = False
    takes_factored = False

    def shared(self, logits: Any) -> dict[str, Tensor]:
        return {}

    def encode(self, logits: Any, *, temperature: float, seed: int) -> Encoded:
        require_finite(logits)
        low, high = self.reach(logits.float())
        step = ((high - low) / 255).clamp_min(1e-30)
        codes = ((logits.float() - low) / step).round().to(torch.uint8)
        error = (low + codes.float() * step - logits.float()).abs().max()
        return Encoded({"codes": codes, "low": low, "step": step}, error=float(error))

    def reach(self, logits: Tensor) -> Any:
        return logits.aminmax(dim=-1, keepdim=True)

    def decode(self, parts: Any, shared: Any, *, classes: int, temperature: float) -> Any:
        return parts["low"] + parts["codes"].float() * parts["step"]


class Changed(Rounded):
    """The same with other parts, for mutants."""

    def encode(self, logits: Any, *, temperature: float, seed: int) -> Encoded:
        kept = super().encode(logits, temperature=temperature, seed=seed)
        return kept._replace(parts=self.change(dict(kept.parts)))

    def change(self, parts: Any) -> Any:
        return parts


class Likely:
    """The three likeliest classes and the mass of the others."""

    uses_temperature = True
    takes_factored = False

    def shared(self, logits: Any) -> dict[str, Tensor]:
        return {}

    def encode(self, logits: Any, *, temperature: float, seed: int) -> Encoded:
        if not bool(logits.amax(-1).isfinite().all()):
            raise SettingError("logits have no distribution")
        top = SparseLogits.top(logits, 3, temperature)
        assert top.log_probs is not None
        assert top.tail is not None
        parts: dict[str, Any] = {"ids": top.ids.int(), "log_probs": top.log_probs.float(), "tail": top.tail.float()}
        return Encoded(parts, top.log_probs.exp().sum(-1))

    def decode(self, parts: Any, shared: Any, *, classes: int, temperature: float) -> Any:
        return SparseLogits(parts["ids"].long(), parts["log_probs"], classes, parts["tail"], temperature=temperature)


class Drawn:
    """Classes that are drawn 20 times, each with how often it came."""

    uses_temperature = True
    takes_factored = False
    rounds = 20

    def shared(self, logits: Any) -> dict[str, Tensor]:
        return {}

    def encode(self, logits: Any, *, temperature: float, seed: int) -> Encoded:
        if not bool(logits.amax(-1).isfinite().all()):
            raise SettingError("logits have no distribution")
        probs = (logits.double() / temperature).softmax(-1)
        drawn = self.draw(probs, seed)
        times = torch.zeros_like(probs, dtype=torch.int64).scatter_add(-1, drawn, torch.ones_like(drawn))
        items, ids = times.nonzero().unbind(1)
        rows, counts = torch.stack([ids, times[items, ids]], 1), (times > 0).sum(-1)
        return Encoded({"drawn": Ragged(rows.int(), counts.short())}, (probs * (times > 0)).sum(-1))

    def draw(self, probs: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        places = torch.rand(len(probs), self.rounds, generator=generator, dtype=torch.float64, device="cpu")
        cumulated = probs.cumsum(-1)
        return torch.searchsorted(cumulated / cumulated[:, -1:], places, right=True).clamp_max(probs.shape[-1] - 1)

    def decode(self, parts: Any, shared: Any, *, classes: int, temperature: float) -> Any:
        (drawn, counts), most = parts["drawn"], self.rounds
        used = torch.arange(most, device=counts.device) < counts.unsqueeze(1)
        ids = torch.zeros(used.shape, dtype=torch.int64, device=counts.device)
        weights = torch.zeros(used.shape, device=counts.device)
        ids[used], weights[used] = drawn[:, 0].long(), drawn[:, 1].float() / self.rounds
        return SparseLogits(ids, None, classes, weights=weights, temperature=temperature)


class Factors:
    """What logits are made of, in 16 bits, and the head once."""

    uses_temperature = False
    takes_factored = True

    def shared(self, logits: Any) -> dict[str, Tensor]:
        numbers = {"scale": logits.scale, "softcap": logits.softcap}
        return {
            "weight": logits.weight,
            **({} if logits.bias is None else {"bias": logits.bias}),
            **{name: torch.tensor(one) for name, one in numbers.items() if one is not None},
        }

    def encode(self, logits: Any, *, temperature: float, seed: int) -> Encoded:
        if isinstance(logits, Tensor):
            raise SettingError("logits are multiplied out")
        hidden = logits.hidden.detach()
        kept = hidden.bfloat16()
        return Encoded({"hidden": kept}, error=float((hidden.double() - kept.double()).abs().max()))

    def decode(self, parts: Any, shared: Any, *, classes: int, temperature: float) -> Any:
        numbers = {name: float(shared[name]) for name in ("scale", "softcap") if name in shared}
        weight = shared["weight"]
        return FactoredLogits(parts["hidden"].to(weight.dtype), weight, shared.get("bias"), **numbers)


class RoundedLaws(CodecLaws):
    pass


class LikelyLaws(CodecLaws):
    pass


class DrawnLaws(CodecLaws):
    draws = True


class FactorsLaws(CodecLaws):
    pass
