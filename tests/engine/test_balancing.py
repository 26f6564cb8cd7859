"""Balancers and shares in a run: what they measure, over micro-batches and tasks, and that nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from killer import Killed, Killer
from small_run import make_batches, make_distiller, make_student, make_teacher, sgd, weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset
from two_processes import run_in_two_processes

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.multi_task import MultiTaskDistiller
from kdplug.errors import ConfigError, KdplugError, RunError, SignatureError
from kdplug.host.registry import balancers
from kdplug.objective.balance import Balance
from kdplug.objective.objective import Objective

FEATURES = {"loss": "hidden_mse", "feature": "hidden", "layer_S": 0, "layer_T": 0, "proj": ["linear", 3, 5]}
FIXED = [{"loss": "kl", "weight": 0.9}, {**FEATURES, "weight": 2}]
SHARED = [{"loss": "kl", "weight": 0.9}, {**FEATURES, "weight": {"share": 0.3}}]


def loader(batch_size=4, count=24, **options):
    data = torch.randn(count, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return DataLoader(TensorDataset(data), batch_size=batch_size, **{"shuffle": True, **options})


def train(
    folder, *, data=None, dropout=0.3, training=None, num_epochs=3, observers=(), student=None, clip=1.0, **config
):
    """The student's and objective's weights, and the lines of the log."""
    torch.manual_seed(0)
    student = student or make_student(dropout=dropout)
    given = {"ckpt_frequency": 2, "logging_steps": 1, "seed": 7, **(training or {})}
    options = {"observers": list(observers), "strict": True}
    resume = config.pop("resume", None)
    distiller = make_distiller(folder, student, training=given, options=options, **config)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.02)
    distiller.train(optimizer, data or loader(), num_epochs=num_epochs, max_grad_norm=clip, resume=resume)
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return torch.cat([weights(student), weights(distiller.objective)]), lines, distiller


def logged(lines, kind):
    """What the log says of each term, by term."""
    names = [name for name in lines[0] if name.startswith(f"{kind}_")]
    return {name.removeprefix(f"{kind}_"): [line[name] for line in lines] for name in names}


def norms_by_hand(objective, student, batches, names):
    """The mean gradient norm of each unweighted term over the batches."""
    teacher, own = make_teacher(), list(student.parameters())
    norms = torch.zeros(len(names), dtype=torch.float64)
    for batch in batches:
        with objective.balance.unweighted():
            report = objective(student=student(batch), teacher=teacher(batch))
        for place, name in enumerate(names):
            found = torch.autograd.grad(report.terms[name].value, own, retain_graph=True, allow_unused=True)
            norms[place] += torch.cat([one.flatten() for one in found if one is not None]).norm() / len(batches)
    return norms


def test_a_share_is_the_share_of_the_gradient_norms_of_the_first_steps(tmp_path):
    batches, student = make_batches(12), make_student()
    balancer = {"name": "share", "calibrate_steps": 5}
    torch.manual_seed(0)
    distiller = make_distiller(
        tmp_path / "hand", make_student(), terms=SHARED, hard_label_weight=0.2, balancer=balancer
    )
    names = [term.name for term in distiller.objective.terms]
    g = norms_by_hand(distiller.objective, student, batches[:5], names)
    fixed = 0.9 * g[0] + 0.2 * g[2]
    _, lines, _ = train(
        tmp_path / "run",
        data=batches,
        dropout=0.0,
        num_epochs=1,
        terms=SHARED,
        hard_label_weight=0.2,
        balancer=balancer,
    )
    found = logged(lines, "weight")
    assert list(found) == names
    expected = {names[0]: 0.9, names[1]: float(0.3 / 0.7 * fixed / g[1]), names[2]: 0.2}
    for name, steps in found.items():
        assert steps == pytest.approx([expected[name]] * 12, rel=1e-10)
    pulls = torch.tensor([expected[name] for name in names]) * g
    assert float(pulls[1] / pulls.sum()) == pytest.approx(0.3)


def test_without_fixed_terms_the_first_share_has_weight_1(tmp_path):
    terms = [{"loss": "kl", "weight": {"share": 0.25}}, {**FEATURES, "weight": {"share": 0.75}}]
    _, lines, distiller = train(tmp_path, terms=terms)
    g = distiller.objective.balance.balancer.total
    kl, hidden = (steps[0] for steps in logged(lines, "weight").values())
    assert kl == pytest.approx(1.0)
    assert hidden == pytest.approx(float(3 * g[0] / g[1]))


@pytest.mark.parametrize(
    "data", [loader, lambda: loader(generator=torch.Generator().manual_seed(5)), lambda: make_batches(6)]
)
@pytest.mark.parametrize("projection", [["linear", 3, 5], ["linear", "auto", "auto"]])
def test_calibration_leaves_no_trace(tmp_path, data, projection):
    """The run trains on the same batches, with the same dropout, as one whose weights are written in the config."""
    shared = [SHARED[0], {**SHARED[1], "proj": projection}]
    lines = train(tmp_path / "shares", data=data(), terms=shared)[1]
    weight = logged(lines, "weight")["hidden_hidden_mse_0_0"][0]
    plain = train(tmp_path / "plain", data=data(), terms=[shared[0], {**shared[1], "weight": weight}])[1]
    assert [line["total_loss"] for line in lines] == pytest.approx([line["total_loss"] for line in plain], rel=1e-9)


def test_a_schedule_multiplies_the_weight_and_counts_as_1_in_the_calibration(tmp_path):
    constant = train(tmp_path / "constant", dropout=0.0, terms=SHARED)[1]
    scheduled = train(
        tmp_path / "scheduled", dropout=0.0, terms=[SHARED[0], {**SHARED[1], "weight_scheduler": "linear_growth"}]
    )[1]
    name, steps = "hidden_hidden_mse_0_0", len(constant)
    whole = logged(constant, "weight")[name][0]
    assert logged(scheduled, "weight")[name] == pytest.approx([whole * step / steps for step in range(steps)])


BALANCERS = ["uncertainty", {"name": "dwa", "period": 2}, "gradnorm", {"name": "gradnorm", "layer": "inner"}]


@pytest.mark.parametrize("balancer", [*BALANCERS, "share"])
def test_micro_batches_change_nothing(tmp_path, balancer):
    """A batch of 8 and two micro-batches of 4 give the same weights."""
    terms = SHARED if balancer == "share" else FIXED
    data = make_batches(6, size=8)
    parts = [part for batch in data for part in batch.split(4)]
    options = {"dropout": 0.0, "terms": terms, "balancer": balancer}
    whole = train(tmp_path / "whole", data=data, **options)
    cut = train(tmp_path / "cut", data=parts, training={"gradient_accumulation_steps": 2}, **options)
    torch.testing.assert_close(cut[0], whole[0], rtol=1e-9, atol=1e-11)
    assert logged(whole[1], "weight")["kl"] == pytest.approx(logged(cut[1], "weight")["kl"], rel=1e-9)


@pytest.mark.parametrize("balancer", BALANCERS)
def test_a_balancer_changes_the_weights_of_the_next_step(tmp_path, balancer):
    lines = train(tmp_path, terms=FIXED, balancer=balancer)[1]
    found = logged(lines, "weight")
    assert found["kl"][0] == pytest.approx(0.9)
    assert found["hidden_hidden_mse_0_0"][0] == pytest.approx(2)
    assert found["kl"][-1] != pytest.approx(0.9)
    totals = [
        sum(logged(lines, "weight")[name][at] * logged(lines, "unweighted")[name][at] for name in found)
        for at in range(len(lines))
    ]
    assert totals == pytest.approx([line["total_loss"] for line in lines])


@pytest.mark.parametrize("balancer", [*BALANCERS, "share"])
@pytest.mark.parametrize("killed_at", [1, 4, 9])
def test_a_killed_run_ends_in_the_same_bits(tmp_path, balancer, killed_at):
    options = {"terms": SHARED if balancer == "share" else FIXED, "balancer": balancer}
    whole = train(tmp_path / "whole", **options)
    with pytest.raises(Killed):
        train(tmp_path / "run", observers=[Killer(killed_at)], **options)
    again = train(tmp_path / "run", resume="auto", **options)
    assert torch.equal(again[0], whole[0])
    assert again[1] == whole[1]


@pytest.mark.slow
@pytest.mark.parametrize("balancer", ["uncertainty", {"name": "dwa", "period": 3}, "gradnorm", "share"])
def test_twenty_kills_end_in_the_same_bits(tmp_path, balancer):
    options = {
        "terms": SHARED if balancer == "share" else FIXED,
        "balancer": balancer,
        "num_epochs": 7,
        "training": {"ckpt_frequency": 6},
    }
    whole = train(tmp_path / "whole", **options)
    kills = sorted(torch.randperm(41, generator=torch.Generator().manual_seed(1))[:20].add(1).tolist())
    for killed_at in kills:
        with pytest.raises(Killed):
            train(tmp_path / "run", observers=[Killer(killed_at)], resume="auto", **options)
    again = train(tmp_path / "run", resume="auto", **options)
    assert torch.equal(again[0], whole[0])
    assert again[1] == whole[1]


SCRIPT = """
import os
import sys
from pathlib import Path
import torch
from leave_group import leave_group
from test_balancing import *

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
found = {}
for name, options in RUNS.items():
    ends, lines, distiller = train(folder / name, data=rows(4), **options)
    found[name] = ends, [line["total_loss"] for line in lines] if rank == 0 else []
torch.save(found, folder / f"{rank}.pt")
leave_group()
"""

RUNS = {
    "share": {"terms": SHARED, "dropout": 0.0},
    "share of a layer": {"terms": SHARED, "dropout": 0.0, "balancer": {"name": "share", "layer": "inner"}},
    "gradnorm": {"terms": FIXED, "dropout": 0.0, "balancer": "gradnorm"},
    "dwa": {"terms": FIXED, "dropout": 0.0, "balancer": {"name": "dwa", "period": 2}},
    "uncertainty": {"terms": FIXED, "dropout": 0.0, "balancer": "uncertainty"},
    "accumulated": {
        "terms": FIXED,
        "dropout": 0.0,
        "balancer": "gradnorm",
        "training": {"gradient_accumulation_steps": 2},
    },
    "accumulated share": {"terms": SHARED, "dropout": 0.0, "training": {"gradient_accumulation_steps": 2}},
}


def rows(batch_size):
    return loader(batch_size, count=48, shuffle=False)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_in_two_processes(folder, SCRIPT, Path(__file__))
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_what_one_does(two_processes, tmp_path, name):
    """In float64, with half of each batch in each process; both have the same weights and the same balancer."""
    ends, lines, _ = train(tmp_path, data=rows(8), **RUNS[name])
    assert torch.equal(two_processes[0][name][0], two_processes[1][name][0])
    torch.testing.assert_close(two_processes[0][name][0], ends, rtol=1e-9, atol=1e-10)
    assert two_processes[0][name][1] == pytest.approx([line["total_loss"] for line in lines], rel=1e-9)


def multi_task(folder, terms, **options):
    torch.manual_seed(0)
    student = make_student()
    configs = {"a": DistillationConfig(terms=terms), "b": DistillationConfig(temperature=2)}
    distiller = MultiTaskDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu", logging_steps=1, ckpt_steps=3, seed=7),
        configs,
        {"a": make_teacher(), "b": make_teacher()},
        student,
        show_progress=False,
        **options,
    )
    distiller.objective.double()
    return distiller, student


def test_a_task_has_its_own_balancer_and_gets_its_own_calibration(tmp_path):
    def run(name, terms, resume=None, observers=()):
        distiller, student = multi_task(tmp_path / name, terms, observers=list(observers))
        distiller.train(sgd(student), {"a": loader(count=8), "b": loader()}, num_steps=9, resume=resume)
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        return weights(student), lines

    terms = [{"loss": "kl", "weight": {"share": 0.2}}, {"loss": "mse", "weight": 0.5}]
    whole, lines = run("whole", terms)
    found = [line["weight_a/kl"] for line in lines if "weight_a/kl" in line]
    assert found
    assert len({round(one, 12) for one in found}) == 1
    assert not any("b/" in name for line in lines for name in line if name.startswith("weight_"))
    _, plain = run("plain", [{**terms[0], "weight": found[0]}, terms[1]])
    assert [line["total_loss"] for line in lines] == pytest.approx([line["total_loss"] for line in plain], rel=1e-9)
    with pytest.raises(Killed):
        run("killed", terms, observers=[Killer(5)])
    assert torch.equal(run("killed", terms, resume="auto")[0], whole)


def blocked(outputs):
    return {**outputs, "hidden": [outputs["hidden"][0].detach()]}


def test_a_share_without_gradient_is_an_error_before_training(tmp_path):
    student = make_student()
    before = weights(student)
    adaptors = (None, lambda batch, outputs: blocked(outputs))
    message = r"^terms\.1\.weight\.share: hidden_hidden_mse_0_0 has no finite gradient in the 8 steps"
    with pytest.warns(UserWarning, match="does not train"), pytest.raises(ConfigError, match=message):
        train(tmp_path, student=student, terms=SHARED, adaptors=adaptors)
    assert torch.equal(weights(student), before)
    assert not list(tmp_path.glob("step-*"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"terms": [SHARED[0], {**FEATURES, "weight": {"share": 1}}]},
            r"^terms\.1\.weight\.share: the shares add up to 1, which leaves",
        ),
        (
            {"terms": [{"loss": "kl", "weight": {"share": 0.5}}]},
            r"^terms\.0\.weight\.share: the shares add up to 0\.5, but every term",
        ),
        ({"terms": [{"loss": "kl", "weight": {"share": 0}}]}, r"^terms\.0\.weight\.share: must be > 0 and <= 1, got 0"),
        ({"terms": [{"loss": "kl", "weight": {"shares": 0.5}}]}, r"^terms\.0\.weight: unknown key 'shares'"),
        (
            {"terms": SHARED, "balancer": "dwa"},
            r"^terms\.1\.weight\.share: cannot be combined with the balancer kdplug-presets:dwa",
        ),
        ({"terms": FIXED, "balancer": "share"}, r"^balancer: kdplug-presets:share has no effect: no term has a share"),
        ({"terms": FIXED, "balancer": "gradnrm"}, r"^balancer: no balancer named 'gradnrm'. Did you mean 'gradnorm'"),
        ({"terms": FIXED, "balancer": {"name": "gradnorm", "alpha": -1}}, r"^balancer\.alpha: must be >= 0"),
        (
            {"terms": FIXED, "balancer": {"name": "gradnorm", "layer": "inn"}},
            r"^balancer\.layer\.0: no module 'inn' in the student",
        ),
        (
            {"terms": SHARED, "balancer": {"name": "share", "layer": "dropout"}},
            r"^balancer\.layer: dropout has no trainable",
        ),
    ],
)
def test_what_cannot_be_balanced_is_an_error_before_training(tmp_path, config, message):
    with pytest.raises(KdplugError, match=message):
        train(tmp_path, **config)
    assert not (tmp_path / "log.jsonl").exists()


def test_data_that_can_be_read_only_once_are_an_error_with_shares(tmp_path):
    student = make_student()
    distiller = make_distiller(tmp_path, student, terms=SHARED)
    message = (
        "^dataloader: the data are read before training and again in training, but a generator can be read only once"
    )
    with pytest.raises(RunError, match=message):
        distiller.train(sgd(student), (one for one in make_batches(12)), num_steps=3)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda values: -values, "returned the weight -"),
        (
            lambda values: values * float("nan"),
            "returned the weight nan for kl, but a weight is a finite number >= 0",
        ),
        (
            lambda values: values[:1],
            r"must return a tensor with a weight for each of the 2 terms, got a tensor of shape \[1\]",
        ),
        (lambda values: 1.0, "must return a tensor with a weight for each of the 2 terms, got float"),
    ],
)
def test_weights_that_no_loss_can_have_end_the_run(tmp_path, result, message):
    @balancers.register("own")
    class Own:
        """A balancer."""

        def update(self, values):
            return result(values)

    with pytest.raises(SignatureError, match=message):
        train(tmp_path, terms=FIXED, balancer="own")


def masked(batch, outputs):
    """Rows whose first number is negative do not count."""
    return {"logits": outputs["logits"], "hidden": outputs["hidden"], "logits_mask": batch[:, 0] > 0}


@pytest.mark.parametrize("balancer", ["uncertainty", "gradnorm", "share"])
def test_micro_batches_with_other_masks_change_nothing(tmp_path, balancer):
    terms = [{"loss": "kl", "weight": {"share": 0.4} if balancer == "share" else 1}, {"loss": "mse", "weight": 0.5}]
    data = make_batches(6, size=8)
    parts = [part for batch in data for part in batch.split(4)]
    assert len({int((part[:, 0] > 0).sum()) for part in parts}) > 1
    options = {"dropout": 0.0, "terms": terms, "balancer": balancer, "adaptors": (masked, masked)}
    whole = train(tmp_path / "whole", data=data, **options)
    cut = train(tmp_path / "cut", data=parts, training={"gradient_accumulation_steps": 2}, **options)
    torch.testing.assert_close(cut[0], whole[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("balancer", ["gradnorm", "share"])
def test_a_teacher_cache_changes_nothing(tmp_path, balancer):
    options = {"terms": SHARED if balancer == "share" else FIXED, "balancer": balancer}
    live = train(tmp_path / "live", **options)
    cached = train(tmp_path / "cached", is_caching_logits=True, **options)
    assert [line["total_loss"] for line in cached[1]] == pytest.approx([line["total_loss"] for line in live[1]])
    assert logged(cached[1], "weight")["kl"] == pytest.approx(logged(live[1], "weight")["kl"])


def test_terms_of_a_layer_map_are_balanced_once_they_are_counted(tmp_path):
    layer_map = {"name": "uniform", "embeddings": False, **{key: FEATURES[key] for key in ("feature", "loss")}}
    layer_map["proj"] = ["linear", "auto", "auto"]
    _, lines, distiller = train(tmp_path, layer_map=layer_map, balancer="gradnorm", hard_label_weight=1)
    assert [term.name for term in distiller.objective.balance.terms] == [
        "kd_loss",
        "hidden_hidden_mse_0_0",
        "hard_label_loss",
    ]
    assert sum(steps[-1] for steps in logged(lines, "weight").values()) == pytest.approx(3)


def test_a_skipped_step_leaves_the_balancer_alone(tmp_path):
    class Spoil:
        """Makes one batch infinite."""

        def __init__(self):
            self.count = 0

        def __call__(self, batch, outputs):
            self.count += 1
            logits = outputs["logits"] * float("inf") if self.count == 3 else outputs["logits"]
            return {"logits": logits, "hidden": outputs["hidden"]}

    options = {
        "adaptors": (None, Spoil()),
        "training": {"on_nonfinite": "skip"},
        "terms": FIXED,
        "balancer": "gradnorm",
    }
    _, lines, distiller = train(tmp_path, data=make_batches(6), num_epochs=1, **options)
    weights_of = logged(lines, "weight")["kl"]
    assert weights_of[2] == weights_of[3]
    assert weights_of[1] != weights_of[2]
    assert int(distiller.objective.balance.updates) == 5


class Reads(TorchDispatchMode):
    """Counts the numbers that are read from tensors, for each of which an accelerator would wait."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "gradnorm"])
def test_an_update_reads_no_number_from_the_device(name, monkeypatch):
    """But for the check of the weights, which the CPU alone makes."""
    objective = Objective(DistillationConfig(terms=[{"loss": "kl"}, {"loss": "mse"}], balancer=name))
    monkeypatch.setattr(Balance, "_check_finite", lambda *_: None)
    monkeypatch.setattr(Balance, "_is_read", staticmethod(lambda _: False))
    values = {"kl": torch.tensor(0.3), "mse": torch.tensor(2.0)}
    with Reads() as reads:
        for step in range(5):
            objective.balance.take(values, values, 0.0, step, 5)
            objective.balance.each(step + 1, trains=True)
    assert reads.count == 0
    assert int(objective.balance.updates) == 5
