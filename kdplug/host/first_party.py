"""Names of the entries of first-party packages, so that an error can name the package to install. A test compares them with the metadata."""

from __future__ import annotations

from types import MappingProxyType

FIRST_PARTY = MappingProxyType(
    {
        "kdplug-logits": MappingProxyType(
            {
                "losses": (
                    "adaptive_kl",
                    "alpha_beta",
                    "bce",
                    "dist",
                    "dkd",
                    "jsd",
                    "kl",
                    "logit_std",
                    "nkd",
                    "ranking",
                    "regression",
                    "reverse_kl",
                    "sampled",
                    "skew_kl",
                    "skew_reverse_kl",
                    "topk",
                    "tvd",
                    "uld",
                    "wsld",
                ),
                "cache_codecs": ("dense", "hidden", "sampled", "topk_tail"),
            }
        ),
        "kdplug-presets": MappingProxyType(
            {
                "losses": (
                    "attention_ce",
                    "attention_ce_mean",
                    "attention_mse",
                    "attention_mse_sum",
                    "ce",
                    "cos",
                    "fsp",
                    "gram",
                    "hidden_mse",
                    "mmd",
                    "mse",
                    "nst",
                    "pkd",
                ),
                "projections": ("linear", "relu", "tanh"),
                "weight_schedulers": ("linear_decay", "linear_growth", "linear_warmup"),
                "temperature_schedulers": ("constant", "cwsm", "flsw"),
                "layer_maps": ("emb_and_last", "last", "skip", "uniform"),
                "teacher_updates": ("ema",),
                "teacher_combiners": ("entropy_gate", "mean_logits", "mean_probs", "select", "weighted"),
            }
        ),
        "kdplug-tasks": MappingProxyType(
            {
                "tasks": (
                    "causal-lm",
                    "digits",
                    "image-classification",
                    "multi-label",
                    "question-answering",
                    "regression",
                    "text-classification",
                    "text-pair-classification",
                    "token-classification",
                )
            }
        ),
    }
)
"""Distribution to kind to entry names."""
