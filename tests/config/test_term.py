"""``terms``: one list for every loss of a distillation, of which TextBrewer's keys are a shorter spelling."""

from __future__ import annotations

import pytest

from kdplug import ConfigError, DistillationConfig, KdplugError, TermConfig

FEATURES = {"loss": "hidden_mse", "feature": "hidden", "layer_S": 2, "layer_T": 4}


def of(*terms, **keys):
    return DistillationConfig(terms=list(terms), **keys)


def names(config):
    return [term.name for term in config.written_terms()]


def test_a_term_is_named_by_its_loss_its_heads_and_its_layers():
    config = of({"loss": "ce"}, {"loss": "ce", "head_S": 1, "head_T": 0}, FEATURES, {"loss": "ce", "name": "mine"})
    assert names(config) == ["ce", "ce_head_1_0", "hidden_hidden_mse_2_4", "mine"]


def test_equal_terms_get_different_names():
    assert names(of({"loss": "ce"}, {"loss": "ce"}, {"loss": "ce", "name": "ce_2"})) == ["ce", "ce_3", "ce_2"]


def test_terms_replace_the_kd_loss():
    assert names(of({"loss": "ce", "weight": 0.5})) == ["ce"]
    assert of({"loss": "ce"}).kd_loss_weight == 0


@pytest.mark.parametrize("key", ["kd_loss_type", "kd_loss_weight", "kd_loss_weight_scheduler"])
def test_terms_exclude_the_keys_of_the_kd_loss(key):
    value = {"kd_loss_type": "ce", "kd_loss_weight": 1, "kd_loss_weight_scheduler": "linear_decay"}[key]
    with pytest.raises(ConfigError, match=f"^terms: cannot be combined with {key}\\."):
        of({"loss": "ce"}, **{key: value})


def test_matches_and_layer_maps_may_be_added_to_terms(match):
    layer_map = {"name": "each", "feature": "hidden", "loss": "hidden_mse"}
    config = of({"loss": "ce"}, intermediate_matches=[match])
    assert names(config) == ["ce", "hidden_hidden_mse_3_10"]
    with pytest.raises(KdplugError, match="layer_map"):
        of({"loss": "ce"}, layer_map={**layer_map, "name": "unknown"})


def test_the_temperature_of_the_config_is_the_default_of_each_term():
    config = of(
        {"loss": "ce"},
        {"loss": "ce", "temperature": 1},
        {"loss": "ce", "temperature_scheduler": "none"},
        {"loss": "ce", "temperature_scheduler": ["flsw", 2, 2]},
        temperature=8,
        temperature_scheduler=["flsw", 1, 1],
    )
    found = [config.temperature_of(term) for term, _, _ in config.written_terms()]
    assert [one.base for one in found] == [8, 1, 8, 8]
    assert [one.scheduler and one.scheduler.args for one in found] == [(1, 1), (1, 1), None, (2, 2)]


def test_a_config_without_terms_resolves_to_the_terms_that_it_means(match):
    config = DistillationConfig(
        temperature=2, kd_loss_type="blend", kd_loss_weight=3, intermediate_matches=[{**match, "weight": 5}]
    )
    kd, feature = config.resolved().terms
    assert (kd.name, kd.loss.name, kd.weight, kd.temperature) == ("kd_loss", "kdplug-presets:blend", 3, 2)
    assert (feature.name, feature.layer_S, feature.layer_T, feature.weight) == ("hidden_hidden_mse_3_10", 3, 10, 5)
    assert names(config.resolved()) == names(config)


@pytest.mark.parametrize(
    "terms",
    [
        [{"loss": "ce"}],
        [{"loss": ["blend", 1, 2], "temperature": 1, "temperature_scheduler": "none", "head_S": 1}],
        [FEATURES, {**FEATURES, "proj": ["linear", 3, 5, {"lr": 0.1}], "weight_scheduler": "linear_decay"}],
        [{**FEATURES, "layer_S": ["a.*", 1], "layer_T": [2, 3], "teacher": 1, "name": "mine"}],
    ],
)
def test_terms_go_round(terms):
    config = of(*terms, temperature_scheduler=["flsw", 1, 1])
    assert DistillationConfig.from_dict(config.to_dict()) == config
    assert DistillationConfig.from_yaml(config.to_yaml()) == config
    assert DistillationConfig.from_json(config.to_json()) == config
    resolved = config.resolved()
    assert resolved.resolved() == resolved
    assert DistillationConfig.from_yaml(resolved.to_yaml()) == resolved


def test_a_term_writes_only_keys_that_have_a_value():
    assert TermConfig(loss="ce").to_dict() == {"loss": "ce", "weight": 1.0, "weight_scheduler": "none"}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], r"^terms: the list is empty"),
        ([{"loss": "cee"}], r"^terms\.0\.loss: no loss named 'cee'\. Did you mean 'ce'"),
        ([{"weight": 1}], r"^terms\.0\.loss: "),
        ([{"loss": "ce", "proj": "linear"}], r"^terms\.0\.proj: has no effect without layer_S and layer_T"),
        ([{"loss": "ce", "feature": "hidden"}], r"^terms\.0\.feature: has no effect without layer_S and layer_T"),
        ([{"loss": "hidden_mse", "layer_S": 1}], r"^terms\.0\.layer_T: is required"),
        ([{"loss": "hidden_mse", "layer_S": 1, "layer_T": 1}], r"^terms\.0\.feature: is required"),
        ([{**FEATURES, "layer_S": [1, 2]}], r"^terms\.0: layer_T and layer_S must both"),
        ([{"loss": "ce"}, {"loss": "ce", "weight": -1}], r"^terms\.1\.weight: must be >= 0"),
        ([{"loss": "ce", "weight": 0}], "^every term is disabled"),
        ([{"loss": "ce", "weight": 0, "weight_scheduler": "linear_decay"}], r"^terms\.0\.weight: is 0, so"),
        ([{"loss": "ce", "head_S": -1}], r"^terms\.0\.head_S: must be >= 0"),
        ([{"loss": "ce", "temperature": 0}], r"^terms\.0\.temperature: must be > 0"),
        ([{"loss": "ce", "temperatur": 1}], r"^terms\.0\.temperatur: unknown key\. Did you mean 'temperature'"),
        (
            [{"loss": "ce", "name": "hard_label_loss"}],
            r"^terms\.0\.name: 'hard_label_loss' is the name of a built-in term",
        ),
        ([{"loss": "ce", "extras": "values"}], r"^terms\.0\.extras: must be a list, such as \[values\], got 'values'"),
        ([{"loss": "ce", "extras": []}], r"^terms\.0\.extras: the list is empty"),
        ([{"loss": "ce", "extras": ["a", " "]}], r"^terms\.0\.extras\.1: must be a name, such as values, got ' '"),
        ([{"loss": "ce", "extras": ["a", "b", "a"]}], r"^terms\.0\.extras\.2: 'a' is in the list twice"),
        (
            [{"loss": "ce", "reads_T": ["fc.weight"]}],
            r"^terms\.0\.reads_T\.0: cannot read 'fc\.weight' as the path .* Did you mean 'fc:parameter\.weight'\?",
        ),
        ([{"loss": "ce", "reads_S": ["a..b:buffer.c"]}], r"^terms\.0\.reads_S\.0: cannot read 'a\.\.b:buffer\.c'"),
        ([{"loss": "ce", "reads_S": ["a:buffer.b.c"]}], r"^terms\.0\.reads_S\.0: cannot read"),
        (
            [{"loss": "ce", "reads_S": ["fc:param.w"]}],
            r"^terms\.0\.reads_S\.0: .* got 'param'\. Did you mean 'parameter'",
        ),
        ([{"loss": "ce", "reads_S": ["layer.*:buffer.w"]}], r"^terms\.0\.reads_S\.0: .*: a glob may match several"),
        (
            [{"loss": "ce", "name": "a"}, {"loss": "ce", "name": "a"}],
            r"^terms\.1\.name: 'a' is already the name of terms\.0",
        ),
    ],
)
def test_a_wrong_term_is_named_with_its_path(terms, message):
    with pytest.raises(KdplugError, match=message):
        DistillationConfig(terms=terms)


def test_what_a_term_names_is_written_as_it_was_given():
    named = {"extras": ["values"], "reads_S": ["fc:parameter.weight"], "reads_T": [":buffer.a", "b.c:buffer.d"]}
    config = DistillationConfig(terms=[{"loss": "ce", **named}, {"loss": "ce"}])
    data = config.to_dict()
    assert {key: data["terms"][0][key] for key in named} == named
    assert not named.keys() & data["terms"][1].keys()
    assert DistillationConfig.from_dict(data) == config
    resolved = config.resolved().to_dict()["terms"][0]
    assert {key: resolved[key] for key in named} == named


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"loss": {"name": "blend", "alhpa": 1}}, r"^terms\.0\.loss: .* has no setting 'alhpa'"),
        ({"loss": "hidden_mse"}, r"^terms\.0\.loss: .*'student_features', which is not available in a kd loss"),
        ({**FEATURES, "loss": "ce"}, r"^terms\.0\.loss: .* requests no feature"),
        ({**FEATURES, "proj": ["linear", 3, 5, {"learning_rate": 1}]}, r"^terms\.0\.proj\.3\.learning_rate: "),
        ({"loss": "ce", "temperature_scheduler": ["flsw", 1, -1]}, r"^terms\.0\.temperature_scheduler\.gamma: must be"),
    ],
)
def test_what_cannot_be_resolved_is_named_with_its_path(term, message):
    with pytest.raises(KdplugError, match=message):
        of(term).resolved()
