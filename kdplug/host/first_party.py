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
                "balancers": ("dwa", "gradnorm", "share", "uncertainty"),
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
        "kdplug-vision": MappingProxyType(
            {
                "losses": (
                    "ab",
                    "at",
                    "at_paper",
                    "cat_kd",
                    "cc",
                    "cc_paper",
                    "crd",
                    "crd_in_batch",
                    "cwd",
                    "deit_hard",
                    "deit_soft",
                    "diffkd",
                    "fitnet",
                    "fsp_map",
                    "ft",
                    "ickd",
                    "lightly_v1",
                    "mgd",
                    "nst_map",
                    "ofd",
                    "pearson_kd",
                    "pkt",
                    "reviewkd",
                    "rkd",
                    "semckd",
                    "simkd",
                    "sp",
                    "srd",
                    "srd_corr",
                    "srrl",
                    "vid",
                    "vit_tokens",
                ),
                "projections": ("conv",),
            }
        ),
    }
)
"""Distribution to kind to entry names."""
