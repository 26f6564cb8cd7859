"""Layer maps in an objective: when their pairs are known, and what they amount to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdplug import DistillationConfig, Objective
from kdplug.errors import ConfigError, KdplugError, OutputsError, RunError
from kdplug.host import registry


class Net(nn.Module):
    """``emb`` and ``depth`` layers; the hidden states begin with what ``emb`` puts out."""

    def __init__(self, width, depth):
        super().__init__()
        self.emb = nn.Linear(4, width)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(nn.Linear(width, width) for _ in range(depth))})
        self.head = nn.Linear(width, 3)
        self.double()

    def forward(self, x):
        hidden = [self.emb(x)]
        for layer in self.encoder["layer"]:
            hidden.append(layer(hidden[-1]))
        return {"logits": self.head(hidden[-1]), "hidden": hidden}


@pytest.fixture(autouse=True)
def maps(entries):
    def halves(student_layers, teacher_layers, *, embeddings: bool = False):
        if teacher_layers != 2 * student_layers:
            raise ConfigError(f"halves: {teacher_layers} is not twice {student_layers}")
        pairs = [(m, 2 * m) for m in range(1, student_layers + 1)]
        return [(0, 0), *pairs] if embeddings else pairs

    registry.layer_maps.register("halves")(halves)


@pytest.fixture
def nets():
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Net(5, 2), Net(5, 4).eval()


@pytest.fixture
def x(random):
    return random(2, 3, 4)


def objective(match=(), **keys):
    keys = {"name": "halves", "feature": "hidden", "loss": "plain_mse", **keys}
    config = DistillationConfig(kd_loss_weight=0, intermediate_matches=list(match), layer_map=keys)
    return Objective(config).double()


def pairs(built):
    return [(match.layer_S, match.layer_T) for match in built.config.intermediate_matches]


def test_counts_in_the_config_settle_the_pairs_at_once():
    built = objective(layers_S=2, layers_T=4)
    assert pairs(built) == [(1, 2), (2, 4)]
    assert not built.needs_materialize
    assert [term.name for term in built.terms] == ["hidden_plain_mse_1_2", "hidden_plain_mse_2_4"]


def test_without_counts_the_first_batch_decides(nets, x):
    built = objective()
    assert built.needs_materialize
    assert built.terms == ()
    built.materialize(nets[0](x), nets[1](x))
    assert pairs(built) == [(1, 2), (2, 4)]
    assert built.config.layer_map == ()


def test_the_pairs_cost_what_they_cost_written_by_hand(nets, x, match):
    built = objective(weight=0.5)
    made, given = nets[0](x), nets[1](x)
    built.materialize(made, given)
    matches = [match(layer_S=s, layer_T=t, weight=0.5) for s, t in ((1, 2), (2, 4))]
    by_hand = Objective(DistillationConfig(kd_loss_weight=0, intermediate_matches=matches))
    assert torch.equal(built(made, given).total, by_hand(made, given).total)


def test_a_map_by_path_is_settled_by_the_models(nets):
    built = objective(layer_S="encoder.layer.*", layer_T="encoder.layer.*")
    built.connect(*nets)
    assert pairs(built) == [
        ("encoder.layer.0", "encoder.layer.1"),
        ("encoder.layer.1", "encoder.layer.3"),
    ]
    assert built.terms[0].name == "hidden_plain_mse_encoder.layer.0_encoder.layer.1"
    assert built.paths("teacher") == ("encoder.layer.1", "encoder.layer.3")


def test_paths_may_begin_with_the_embeddings_when_configured(nets):
    layers = ["emb", "encoder.layer.*"]
    built = objective(name={"name": "halves", "embeddings": True}, layer_S=layers, layer_T=layers, embeddings=True)
    built.connect(*nets)
    assert pairs(built)[0] == ("emb", "emb")
    assert pairs(built)[1:] == [("encoder.layer.0", "encoder.layer.1"), ("encoder.layer.1", "encoder.layer.3")]


def test_one_side_may_go_by_path_and_the_other_by_index(nets, x):
    built = objective(layer_S="encoder.layer.*")
    with built.capture(*nets) as capture:
        with capture.student.reading():
            made = nets[0](x)
        built.materialize(capture.student.join(made), nets[1](x))
    assert pairs(built) == [("encoder.layer.0", 2), ("encoder.layer.1", 4)]


def test_a_map_by_path_compares_what_one_by_index_does(nets, x):
    values = []
    for keys in ({}, {"layer_S": "encoder.layer.*", "layer_T": "encoder.layer.*"}):
        built = objective(**keys)
        with built.capture(*nets) as capture:
            with capture.student.reading():
                made = nets[0](x)
            with capture.teacher.reading():
                given = nets[1](x)
            joined = capture.student.join(made), capture.teacher.join(given)
        built.materialize(*joined)
        values.append(built(*joined).total)
    assert torch.equal(*values)


def test_each_pair_has_a_projection_and_an_optimizer_group_of_its_own(x):
    student, teacher = Net(5, 2), Net(7, 4)
    built = objective(proj=["linear", "auto", "auto", {"lr": 0.1}])
    built.materialize(student(x), teacher(x))
    groups = built.param_groups()
    assert [[tuple(p.shape) for p in group["params"]] for group in groups] == [[(7, 5), (7,)]] * 2
    assert [group["lr"] for group in groups] == [0.1, 0.1]


def test_a_projection_of_known_width_still_fits_what_the_first_batch_holds(x):
    student, teacher = Net(5, 2), Net(7, 4)
    built = objective(proj=["linear", 5, 7])
    built.materialize(student(x), teacher(x))
    assert {p.dtype for p in built.parameters()} == {torch.float64}


def test_materializing_twice_changes_nothing(nets, x):
    built = objective(proj=["linear", "auto", "auto"])
    made, given = nets[0](x), nets[1](x)
    built.materialize(made, given)
    before = list(built.parameters())
    built.materialize(made, given)
    assert all(a is b for a, b in zip(before, built.parameters(), strict=True))


def test_pairs_keep_clear_of_the_names_of_other_terms(match):
    built = objective([match(layer_S=1, layer_T=2), match(name="hidden_plain_mse_2_4")], layers_S=2, layers_T=4)
    names = [term.name for term in built.terms]
    assert names == ["hidden_plain_mse_1_2", "hidden_plain_mse_2_4", "hidden_plain_mse_1_2_2", "hidden_plain_mse_2_4_2"]


def test_before_the_first_batch_the_objective_says_what_is_missing(nets, x):
    built = objective()
    for use in (lambda: built(nets[0](x), nets[1](x)), built.param_groups):
        with pytest.raises(RunError, match=r"^layer_map: the number of layers is not known yet"):
            use()


def test_a_map_by_path_that_saw_no_model_says_so(nets, x):
    with pytest.raises(RunError, match=r"^layer_map: the layer map uses module paths"):
        objective(layer_S="encoder.layer.*").materialize(nets[0](x), nets[1](x))


def test_a_wrong_pattern_is_reported_with_its_field(nets):
    with pytest.raises(ConfigError, match=r"^layer_map\.layer_T: no module 'layers\.\*' in the teacher"):
        objective(layer_T="layers.*").connect(*nets)


def test_what_the_adaptor_did_not_return_is_reported_with_the_field(nets, x):
    built = objective(feature="attention")
    with pytest.raises(OutputsError, match=r"^layer_map\.feature: the student returned no 'attention'"):
        built.materialize(nets[0](x), nets[1](x))


def test_depths_that_do_not_fit_hint_at_the_embeddings(x):
    made, given = ({"hidden": [torch.ones(1)] * count} for count in (2, 4))
    with pytest.raises(ConfigError, match=r"^layer_map\.name: halves: 3 is not twice 1 .*set embeddings: false"):
        objective().materialize(made, given)


def test_a_layer_that_is_not_there_is_reported_with_the_map(nets, x):
    built = objective(layers_S=2, layers_T=4)
    given = {"hidden": nets[1](x)["hidden"][1:]}
    with pytest.raises(KdplugError, match=r"^layer_map\.layer_T: there is no layer 4: the teacher returned 4 hidden"):
        built(nets[0](x), given)


def test_a_map_of_weight_0_is_not_looked_at(nets, x):
    config = {"layer_map": {"name": "halves", "feature": "attention", "loss": "plain_mse", "weight": 0}}
    built = Objective(DistillationConfig(**config, kd_loss_type="ce"))
    assert [term.name for term in built.terms] == ["kd_loss"]
    assert not built.needs_materialize


def test_the_config_with_pairs_written_out_builds_the_same_objective(nets, x):
    built = objective(proj=["linear", 5, 5])
    made, given = nets[0](x), nets[1](x)
    built.materialize(made, given)
    again = Objective(DistillationConfig.from_yaml(built.config.to_yaml())).double()
    again.load_state_dict(built.state_dict())
    assert torch.equal(again(made, given).total, built(made, given).total)
