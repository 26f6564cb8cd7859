"""Configs and junk, as Hypothesis draws them. Names are those of the toys in tests/config/conftest.py."""

from __future__ import annotations

from hypothesis import strategies as st

_numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6)
_scalars = st.none() | st.booleans() | _numbers | st.text(max_size=8)
_plain = st.recursive(
    _scalars,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=5,
)
_weights = st.floats(1e-6, 1e6) | st.integers(1, 100)
_settings = st.dictionaries(
    st.text(min_size=1, max_size=5).filter(lambda key: key not in ("name", "in_dim", "out_dim", "options")),
    _plain,
    max_size=2,
)


def components(*names):
    name = st.sampled_from(names)
    listed = st.builds(lambda n, args: [n, *args], name, st.lists(_plain, max_size=3))
    return name | listed | st.builds(lambda n, values: {**values, "name": n}, name, _settings)


_schedulers = st.sampled_from([None, "none"]) | components("linear_decay", "linear_growth")
_widths = st.just("auto") | st.integers(1, 4096)
_options = st.fixed_dictionaries(
    {}, optional={"lr": st.floats(0, 1), "betas": st.lists(st.floats(0, 1), min_size=2, max_size=2)}
)
_projections = (
    st.sampled_from([None, "linear"])
    | st.tuples(components("linear", "relu"), _widths, _widths).map(list)
    | st.tuples(components("linear", "relu"), _widths, _widths, _options).map(list)
    | st.builds(lambda values, width: {**values, "name": "relu", "in_dim": width}, _settings, _widths)
)
_layers = st.tuples(st.integers(-12, 12), st.integers(-12, 12)) | st.integers(1, 3).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-12, 12), min_size=n, max_size=n)] * 2)
)
matches = st.builds(
    lambda layers, rest: {"layer_T": layers[0], "layer_S": layers[1], **rest},
    _layers,
    st.fixed_dictionaries(
        {"feature": st.sampled_from(["hidden", "attention"]), "loss": components("hidden_mse", "fsp")},
        optional={"weight": _weights, "weight_scheduler": _schedulers, "proj": _projections},
    ),
)
distillations = st.fixed_dictionaries(
    {},
    optional={
        "temperature": _weights,
        "temperature_scheduler": st.sampled_from([None, "none"]) | components("flsw"),
        "kd_loss_type": components("ce", "blend"),
        "kd_loss_weight": _weights,
        "kd_loss_weight_scheduler": _schedulers,
        "hard_label_weight": _weights,
        "hard_label_weight_scheduler": _schedulers,
        "probability_shift": st.booleans(),
        "is_caching_logits": st.booleans(),
        "intermediate_matches": st.lists(matches, max_size=3),
    },
)
junk_values = st.recursive(
    _scalars | st.floats() | st.binary(max_size=3) | st.just(object()) | st.integers(),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "in_dim", "options", "loss", "lr"]) | st.text(max_size=3) | st.integers(),
            below,
            max_size=3,
        )
        | st.tuples(st.sampled_from(["linear", "ce", "hidden_mse"]), below, below)
    ),
    max_leaves=8,
)
