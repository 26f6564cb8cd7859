"""What a user of ``MultiTeacherDistiller`` sees."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from small_run import MATCH, PROJECTED, Net, make_batches, make_distiller, make_student, make_teacher, sgd, weights
from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.general import GeneralDistiller
from kdplug.distillers.multi_teacher import MultiTeacherDistiller
from kdplug.errors import ConfigError, OutputsError, RunError, SettingError


def teachers_of(*seeds, dropout=0.0):
    return [Net(5, seed=seed, dropout=dropout) for seed in seeds]


def make(folder, student, teachers, adaptor=None, adaptor_S=None, *, matches=(), training=None, **distillation):
    distiller = MultiTeacherDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu", **(training or {})),
        DistillationConfig(intermediate_matches=list(matches), **distillation),
        teachers,
        student,
        adaptor,
        adaptor_S,
        show_progress=False,
    )
    distiller.objective.double()
    return distiller


def end_of(folder, teachers, *, adaptor=None, matches=(), batches=None, **options):
    """The student's weights after two epochs, projections seeded."""
    student = make_student()
    torch.manual_seed(0)
    distiller = make(folder, student, teachers, adaptor, matches=matches, **options)
    distiller.train(sgd(student), batches or make_batches(3), 2, overwrite=True)
    return weights(student)


def general(folder, teacher, *, matches=(), batches=None, **options):
    student = make_student()
    torch.manual_seed(0)
    make_distiller(folder, student, teacher, matches=matches, **options).train(
        sgd(student), batches or make_batches(3), 2, overwrite=True
    )
    return weights(student)


def by_hand(teachers, combine, *, temperature=4.0, lr=0.1):
    student = make_student()
    optimizer = sgd(student, lr)
    for batch in make_batches(3) * 2:
        with torch.no_grad():
            target = (combine([teacher(batch)["logits"] for teacher in teachers]) / temperature).softmax(-1)
        optimizer.zero_grad()
        (-(target * (student(batch)["logits"] / temperature).log_softmax(-1)).sum(-1).mean()).backward()
        optimizer.step()
    return weights(student)


def test_the_arguments_are_in_textbrewers_order():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import textbrewer
    for method in ("__init__", "train"):
        theirs, ours = (getattr(c, method) for c in (textbrewer.MultiTeacherDistiller, MultiTeacherDistiller))
        names = list(inspect.signature(theirs).parameters)
        assert list(inspect.signature(ours).parameters)[: len(names) - 1] == names[: len(names) - 1]


@pytest.mark.parametrize("matches", [[], [MATCH | {"proj": ["linear", 3, 5]}], [{**PROJECTED, "teacher": 0}]])
@pytest.mark.parametrize("form", ["list", "dict"])
def test_one_teacher_trains_exactly_as_general_distiller_does(tmp_path, matches, form):
    options = {"hard_label_weight": 0.3, "temperature_scheduler": ["flsw", 1, 1]}
    teachers = [make_teacher()] if form == "list" else {"big": make_teacher()}
    found = end_of(tmp_path, teachers, matches=matches, **options)
    assert torch.equal(found, general(tmp_path, make_teacher(), matches=matches, **options))


def test_two_equal_teachers_train_as_one_does(tmp_path):
    assert torch.equal(end_of(tmp_path, teachers_of(2, 2)), general(tmp_path, make_teacher()))


@pytest.mark.parametrize(
    ("combiner", "combine"),
    [
        ("mean_logits", lambda logits: sum(logits) / 3),
        ("mean_probs", lambda logits: 4 * (sum((one / 4).softmax(-1) for one in logits) / 3).log()),
        (["weighted", [1, 2, 5]], lambda logits: (logits[0] + 2 * logits[1] + 5 * logits[2]) / 8),
        (["select", 1], lambda logits: logits[1]),
    ],
    ids=["mean_logits", "mean_probs", "weighted", "select"],
)
def test_a_combiner_trains_as_a_loop_written_by_hand(tmp_path, combiner, combine):
    found = end_of(tmp_path, teachers_of(2, 3, 4), teacher_combiner=combiner)
    assert torch.allclose(found, by_hand(teachers_of(2, 3, 4), combine), rtol=0, atol=1e-14)


def test_the_gate_trains_as_a_loop_written_by_hand(tmp_path):
    def combine(logits):
        entropy = torch.stack([torch.special.entr(one.softmax(-1)).sum(-1, keepdim=True) for one in logits])
        return ((-entropy / 0.5).softmax(0) * torch.stack(logits)).sum(0)

    found = end_of(tmp_path, teachers_of(2, 3), teacher_combiner={"name": "entropy_gate", "gate_temperature": 0.5})
    assert torch.allclose(found, by_hand(teachers_of(2, 3), combine), rtol=0, atol=1e-14)


def test_the_mean_is_what_nothing_said_means_and_order_does_not_matter_to_it(tmp_path):
    found = end_of(tmp_path, teachers_of(2, 3))
    assert torch.equal(found, end_of(tmp_path, teachers_of(3, 2), teacher_combiner="kdplug-presets:mean_logits"))


def test_weights_1_and_0_are_the_first_teacher_alone(tmp_path):
    found = end_of(tmp_path, teachers_of(2, 3), teacher_combiner=["weighted", [1, 0]])
    assert torch.equal(found, general(tmp_path, make_teacher()))


@pytest.mark.parametrize(
    "form",
    [list, tuple, nn.ModuleList, lambda t: {"a": t[0], "b": t[1]}, lambda t: nn.ModuleDict({"a": t[0], "b": t[1]})],
)
def test_2_2_16_teachers_come_in_every_container(tmp_path, form):
    assert torch.equal(end_of(tmp_path, form(teachers_of(2, 3))), end_of(tmp_path, teachers_of(2, 3)))


@pytest.mark.filterwarnings("ignore:2 of the student's 4 trained parameters got no gradient")  # its head
def test_2_2_16_a_match_is_not_ignored_and_reads_the_chosen_teacher(tmp_path):
    options = {"kd_loss_weight": 0}
    for place, seed in enumerate((2, 3)):
        found = end_of(tmp_path, teachers_of(2, 3), matches=[{**PROJECTED, "teacher": place}], **options)
        expected = general(tmp_path, teachers_of(seed)[0], matches=[PROJECTED], **options)
        assert torch.equal(found, expected)


def test_a_match_without_a_teacher_among_several_asks_for_one(tmp_path):
    with pytest.raises(ConfigError, match=r"intermediate_matches.0.teacher: must name one of the 2 teachers \(0, 1\)"):
        make(tmp_path, make_student(), teachers_of(2, 3), matches=[MATCH])


def test_a_projection_of_auto_width_fits_the_teacher_it_reads(tmp_path):
    student, teachers = make_student(), {"wide": Net(7, seed=4), "narrow": Net(5, seed=2)}
    matches = [{**MATCH, "proj": ["linear", "auto", "auto"], "teacher": name} for name in teachers]
    distiller = make(tmp_path, student, teachers, matches=matches)
    distiller.train(sgd(student), make_batches(1), 1)
    assert [group["params"][0].shape for group in distiller.objective.param_groups()] == [(7, 3), (5, 3)]


def scaled(factor):
    return lambda batch, outputs: {**outputs, "logits": outputs["logits"] * factor}


@pytest.mark.parametrize("form", [list, tuple, lambda a: dict(zip("ab", a, strict=True))])
def test_each_teacher_has_its_own_adaptor(tmp_path, form):
    teachers = dict(zip("ab", teachers_of(2, 3), strict=True))
    found = end_of(tmp_path, teachers, adaptor=form([scaled(2), scaled(0)]))
    expected = by_hand(teachers_of(2), lambda logits: logits[0])
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)


def test_one_adaptor_serves_all_teachers(tmp_path):
    found = end_of(tmp_path, teachers_of(2, 3), adaptor=scaled(2))
    assert torch.equal(found, end_of(tmp_path, teachers_of(2, 3), adaptor=[scaled(2), scaled(2)]))


@pytest.mark.parametrize("adaptors", [[scaled(1)], {"a": None}, 3], ids=["few", "keys", "number"])
def test_adaptors_that_do_not_go_with_the_teachers_are_an_error(tmp_path, adaptors):
    with pytest.raises(ConfigError, match="adaptor_T: "):
        make(tmp_path, make_student(), teachers_of(2, 3), adaptors)


@pytest.mark.parametrize(
    ("models", "says"),
    [
        (make_teacher(), "got Net. For one teacher use GeneralDistiller"),
        ([], "must contain at least one teacher"),
        ([make_teacher(), 3], "model_T.1: must be a model, got int"),
        ({1: make_teacher()}, "must have strings as keys, got 1"),
        ("ab", "must be a list of models"),
    ],
    ids=["one", "none", "number", "key", "text"],
)
def test_what_holds_no_teachers_is_an_error(tmp_path, models, says):
    with pytest.raises(ConfigError, match=says):
        make(tmp_path, make_student(), models)


def test_missing_logits_of_a_teacher_are_reported(tmp_path):
    adaptors = [None, lambda batch, outputs: {"hidden": outputs["hidden"]}]
    with pytest.raises(OutputsError, match="the teacher 1 returned no logits, only hidden"):
        end_of(tmp_path, teachers_of(2, 3), adaptor=adaptors)


def test_an_adaptor_that_returns_nonsense_is_named_by_its_teacher(tmp_path):
    with pytest.raises(OutputsError, match=r"teacher.b.logit: is not an adaptor key. Did you mean 'logits'"):
        end_of(
            tmp_path,
            dict(zip("ab", teachers_of(2, 3), strict=True)),
            adaptor={"a": None, "b": lambda b, o: {"logit": 1}},
        )


def test_every_teacher_is_in_eval_mode_and_stays_as_it_is(tmp_path):
    student, teachers = make_student(), teachers_of(2, 3, dropout=0.5)
    before, seen = [weights(teacher) for teacher in teachers], []
    for model in (student, *teachers):
        model.register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    make(tmp_path, student, teachers).train(sgd(student), make_batches(1), 1)
    assert seen == [False, False, True]
    assert all(torch.equal(old, weights(teacher)) for old, teacher in zip(before, teachers, strict=True))
    assert all(teacher.training and all(p.requires_grad for p in teacher.parameters()) for teacher in teachers)


def test_with_sets_the_modes_for_its_block(tmp_path):
    student, teachers = make_student().eval(), teachers_of(2, 3)
    with make(tmp_path, student, teachers) as distiller:
        assert [distiller.model_S.training, *(teacher.training for teacher in teachers)] == [True, False, False]
    assert [student.training, *(teacher.training for teacher in teachers)] == [False, True, True]


def test_a_cache_in_the_batch_holds_the_outputs_of_each_teacher(tmp_path):
    teachers, batches = teachers_of(2, 3), make_batches(3)
    caches = [[{"logits": t(b)["logits"].detach()} for t in teachers] for b in batches]
    cached = [{"teacher": None, "student": b, "teacher_cache": c} for b, c in zip(batches, caches, strict=True)]
    assert torch.equal(end_of(tmp_path, teachers, batches=cached), end_of(tmp_path, teachers))
    with pytest.raises(OutputsError, match="teacher_cache: must have one entry for each of the 2 teachers"):
        end_of(tmp_path, teachers, batches=[{**cached[0], "teacher_cache": caches[0][:1]}])


def test_the_teachers_have_a_part_of_the_batch_of_their_own(tmp_path):
    batches = [{"teacher": 2 * batch, "student": batch} for batch in make_batches(3)]
    teachers = [nn.Sequential(Double(), teacher) for teacher in teachers_of(2, 3)]
    assert torch.equal(end_of(tmp_path, teachers_of(2, 3), batches=batches), end_of(tmp_path, teachers))


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


def test_settings_that_do_not_go_with_the_teachers_are_reported_in_the_first_step(tmp_path):
    with pytest.raises(
        SettingError, match=r"teacher_combiner.weights: must contain one weight for each of the 2 teachers, got 3"
    ):
        end_of(tmp_path, teachers_of(2, 3), teacher_combiner=["weighted", [1, 1, 1]])


@pytest.mark.parametrize("maker", [make, make_distiller])
def test_a_combiner_for_one_teacher_is_warned_of(tmp_path, maker):
    teachers = [make_teacher()] if maker is make else make_teacher()
    with pytest.warns(UserWarning, match="teacher_combiner 'mean_probs' has no effect: there is only one teacher"):
        maker(tmp_path, make_student(), teachers, teacher_combiner="mean_probs")


def test_a_student_among_the_teachers_is_an_error(tmp_path):
    student = make_student()
    with pytest.raises(RunError, match=r"share trainable parameters \('.* and 3 more\)"):
        make(tmp_path, student, [make_teacher(), student]).train(sgd(student), make_batches(1), 1)


def test_a_run_by_steps(tmp_path):
    student = make_student()
    assert make(tmp_path, student, teachers_of(2, 3)).train(sgd(student), make_batches(2), num_steps=3).step == 3


def test_general_distiller_is_no_base_of_it():
    assert not issubclass(MultiTeacherDistiller, GeneralDistiller)
