"""A teacher known at a few classes: both sides in K + 1 categories, or the loss that asks for it as it is."""

from __future__ import annotations

import pytest
import torch
from factored_scene import CLASSES, Scene, assert_same
from torch import nn
from torch.nn.functional import kl_div

from kdplug import FactoredLogits, LossSum, OutputsError, SparseLogits, coarsens
from kdplug.objective.chunked.topk_tail import topk_tail_student, topk_tail_teacher

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


@coarsens
def kl(student_logits, teacher_logits, temperature) -> LossSum:
    """A KL divergence that sums over items, and knows that nothing times infinity is nothing."""
    q, p = ((logits / temperature).log_softmax(-1) for logits in (student_logits, teacher_logits))
    values = torch.where(
        p.isneginf(), 0.0, kl_div(q.clamp(min=-1e30), p.clamp(min=-1e30), reduction="none", log_target=True)
    )
    return LossSum(values.sum() * temperature**2, values[..., 0].numel())


def top(scene, k, temperature=4.0):
    return SparseLogits.top(scene.logits("teacher", factored=False), k, temperature)


@pytest.fixture
def scene():
    return Scene()


@pytest.mark.parametrize("k", [1, 3, CLASSES])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_categories_hold_what_each_side_gives_them(scene, k, temperature):
    student, teacher = scene.logits("student", factored=False), top(scene, k, temperature)
    for coarse, logits in (
        (topk_tail_student(student, teacher), student),
        (topk_tail_teacher(teacher), scene.logits("teacher", factored=False)),
    ):
        probs = (logits / temperature).softmax(-1)
        known = probs.gather(-1, teacher.ids)
        expected = torch.cat([known, 1 - known.sum(-1, keepdim=True)], -1)
        torch.testing.assert_close((coarse / temperature).softmax(-1), expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close((coarse / temperature).exp(), expected, rtol=1e-9, atol=1e-12)


def test_the_gradient_through_the_categories_is_autograds(scene):
    teacher, logits = top(scene, 3, 2.0), scene.logits("student", factored=False).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda one: topk_tail_student(one, teacher), (logits,))


def test_with_all_classes_known_the_loss_is_that_of_dense_logits(scene, offer):
    loss = offer(kl)
    expected = scene.run(factored=(), kd_loss_type=loss)
    for factored in ((), ("student",)):
        assert_same(
            scene.run(factored=factored, teacher=top(scene, CLASSES), kd_loss_type=loss, logit_chunk=5), expected
        )


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("factored", [(), ("student",)])
def test_the_loss_is_that_of_the_coarse_distributions(scene, offer, k, factored):
    loss, teacher = offer(kl), top(scene, k)

    def plain():
        logits = scene.logits("student", factored=False) / 4.0
        own, theirs = logits.softmax(-1), (scene.logits("teacher", factored=False) / 4.0).softmax(-1)
        own, theirs = (
            torch.cat([p.gather(-1, teacher.ids), 1 - p.gather(-1, teacher.ids).sum(-1, keepdim=True)], -1)
            for p in (own, theirs)
        )
        total = 16 * (theirs * (theirs / own).log()).sum(-1).mean()
        return total, torch.autograd.grad(total, scene.student)

    assert_same(
        scene.run(factored=factored, teacher=teacher, kd_loss_type=loss, logit_chunk=5), plain(), rtol=1e-8, atol=1e-10
    )


def test_coarse_distributions_are_closer_than_full_ones(scene, offer):
    loss = offer(kl)
    found = [scene.run(factored=(), teacher=top(scene, k), kd_loss_type=loss)[0] for k in (1, 3, 6, CLASSES)]
    assert found == sorted(found)


def test_a_rest_far_below_rounding_keeps_its_digits():
    teacher = SparseLogits.top(torch.tensor([[60.0, 0.0, 0.0]]), 1)
    torch.testing.assert_close(topk_tail_student(torch.tensor([[60.0, 0.0, 0.0]]), teacher), topk_tail_teacher(teacher))


def test_masked_items_are_left_out_of_the_cache_too(scene, offer):
    loss, keys = offer(kl), {"outputs": {"logits_mask": MASK}, "logit_chunk": 3}
    expected = scene.run(factored=(), kd_loss_type=loss, teacher=top(scene, CLASSES), **keys)
    assert_same(scene.run(factored=("student",), kd_loss_type=loss, teacher=top(scene, CLASSES), **keys), expected)
    assert_same(scene.run(factored=(), kd_loss_type=loss, **keys), expected)


def at_ids(student_logits, teacher_logits, teacher_sparse, temperature) -> LossSum:
    assert teacher_logits is None
    log_probs = (student_logits / temperature).log_softmax(-1).gather(-1, teacher_sparse.ids)
    return LossSum(-(teacher_sparse.log_probs.exp() * log_probs).sum(), student_logits[..., 0].numel())


def test_a_loss_that_asks_for_the_sparse_teacher_gets_it_and_the_students_full_logits(scene, offer):
    loss, teacher = offer(at_ids), top(scene, 3)
    dense = scene.run(factored=(), teacher=teacher, kd_loss_type=loss)
    assert_same(scene.run(factored=("student",), teacher=teacher, kd_loss_type=loss, logit_chunk=5), dense)


def test_a_sample_reaches_the_loss_with_its_weights(scene, offer):
    seen, ids = [], top(scene, 3).ids

    def sampled(student_logits, teacher_sparse):
        seen.append(teacher_sparse.weights)
        return student_logits.square().mean()

    sample = SparseLogits(ids, None, CLASSES, weights=torch.ones(3, 4, 3), temperature=4.0)
    scene.run(factored=(), teacher=sample, kd_loss_type=offer(sampled))
    assert torch.equal(seen[0], sample.weights)


def test_a_loss_that_may_take_either_gets_none_where_the_teacher_is_dense(scene, offer):
    def either(student_logits, teacher_logits, teacher_sparse):
        assert teacher_sparse is None
        return (student_logits - teacher_logits).square().mean()

    scene.run(factored=(), kd_loss_type=offer(either))


def only_sparse(student_logits, teacher_sparse):
    raise AssertionError("called")


def labelled(student_logits, teacher_logits, labels):
    raise AssertionError("called")


def spread(student_logits, teacher_logits, temperature):
    raise AssertionError("called")


LABELS = {"labels": torch.zeros(3, 4, dtype=torch.int64)}
IDS = torch.zeros(3, 4, 2, dtype=torch.int64)
HALVES = torch.full((3, 4, 2), 0.5)


@pytest.mark.parametrize(
    ("teacher", "keys", "message"),
    [
        (1.0, {}, r"^temperature: is 4, but the teacher's SparseLogits were taken at 1: a tail"),
        (
            4.0,
            {"temperature_scheduler": "spread"},
            r"^temperature_scheduler: may compute other temperatures .* Set temperature_scheduler: none",
        ),
        (
            4.0,
            {"probability_shift": True, "outputs": LABELS},
            r"^probability_shift: needs the teacher's logit at each label",
        ),
        (
            4.0,
            {"kd_loss_type": "labelled", "outputs": LABELS},
            r"^teacher\.logits: local:labelled requests labels, but",
        ),
        (
            SparseLogits(IDS + 1, HALVES, CLASSES, temperature=4.0),
            {},
            r"^teacher\.logits: local:kl needs the full distribution",
        ),
        (
            SparseLogits(IDS, HALVES.log(), CLASSES, HALVES[..., 0].log(), temperature=4.0),
            {},
            r"^teacher\.logits: hold a class twice",
        ),
    ],
)
@pytest.mark.parametrize("factored", [(), ("student",)])
def test_what_cannot_be_computed_from_a_few_classes_is_refused(scene, offer, factored, teacher, keys, message):
    offer(kl, name="kl")
    offer(labelled, name="labelled")
    offer(spread, "temperature_schedulers", "spread")
    teacher = top(scene, 3, teacher) if isinstance(teacher, float) else teacher
    with pytest.raises(OutputsError, match=message):
        scene.run(factored=factored, teacher=teacher, **{"kd_loss_type": "kl", **keys})


def test_a_loss_that_asks_for_a_sparse_teacher_alone_refuses_a_dense_one(scene, offer):
    with pytest.raises(OutputsError, match=r"^teacher\.logits: local:offered requests teacher_sparse, but .* dense"):
        scene.run(factored=(), kd_loss_type=offer(only_sparse))


def test_a_student_is_never_sparse(scene, build):
    with pytest.raises(OutputsError, match=r"^student\.logits: are SparseLogits, which only a teacher"):
        build()(top(scene, 3), top(scene, 3))


def test_sparse_teachers_are_not_combined(scene, offer):
    from kdplug import DistillationConfig, Objective

    offer(lambda teacher_logits_list: teacher_logits_list[0], "teacher_combiners", "first")
    objective = Objective(DistillationConfig(kd_loss_type="ce", teacher_combiner="first"), teachers=2)
    with pytest.raises(OutputsError, match=r"^teacher_combiner: local:first needs the full logits of each teacher"):
        objective(scene.logits("student", factored=False), [{"logits": top(scene, 3)}] * 2)


def test_classes_that_the_cache_alone_has_stay_in_its_tail(scene, offer):
    loss, longer = offer(kl), Scene(classes=CLASSES + 2)
    teacher = longer.logits("teacher", factored=False).detach()
    teacher[..., CLASSES:] = -100
    keys = {"kd_loss_type": loss, "padded_vocabulary": "drop"}
    with pytest.warns(UserWarning, match="the teacher's last 2 classes are dropped"):
        found = scene.run(factored=("student",), teacher=SparseLogits.top(teacher, 4, 4.0), logit_chunk=5, **keys)
    expected = scene.run(factored=(), teacher=SparseLogits.top(teacher[..., :CLASSES], 4, 4.0), kd_loss_type=loss)
    assert_same(found, expected, rtol=1e-6, atol=1e-9)


def test_a_class_that_the_student_lacks_is_refused(scene, offer):
    teacher = torch.zeros(3, 4, CLASSES + 2)
    teacher[..., -1] = 9
    keys = {"kd_loss_type": offer(kl), "padded_vocabulary": "drop", "teacher": SparseLogits.top(teacher, 1, 4.0)}
    with (
        pytest.warns(UserWarning, match="padded"),
        pytest.raises(OutputsError, match="contain a class outside the student's"),
    ):
        scene.run(factored=(), **keys)


def test_a_student_of_more_classes_than_the_cache_is_cut(scene, offer):
    longer, loss = Scene(classes=CLASSES + 2), offer(kl)
    with pytest.warns(UserWarning, match="the student's last 2 classes are dropped"):
        found = longer.run(teacher=top(scene, 4), kd_loss_type=loss, padded_vocabulary="drop", logit_chunk=5)
    factors = longer.student[0], longer.student[1][:CLASSES], longer.student[2][:CLASSES]
    logits = FactoredLogits(*factors).dense()
    expected = LossSum(*kl((topk_tail_student(logits, top(scene, 4))), topk_tail_teacher(top(scene, 4)), 4.0)).value
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-9, atol=0)


class Declared(nn.Module):
    """A class says it by an attribute."""

    coarsens = True

    def forward(self, student_logits, teacher_logits, temperature):
        return kl(student_logits, teacher_logits, temperature)


class Inherits(Declared):
    """A subclass that compares something else takes it back."""

    coarsens = False


def undeclared(student_logits, teacher_logits, temperature):
    return kl(student_logits, teacher_logits, temperature)


@pytest.mark.parametrize("factored", [(), ("student",)])
def test_a_loss_that_does_not_declare_coarsens_is_refused_with_the_way_to_declare_it(scene, offer, factored):
    for loss in (undeclared, Inherits):
        with pytest.raises(
            OutputsError,
            match=r"^teacher\.logits: local:offered does not declare coarsens. .* 3 classes, different for each item, .*: "
            r"@kdplug\.coarsens above the function, coarsens = True in the class$",
        ):
            scene.run(factored=factored, teacher=top(scene, 3), kd_loss_type=offer(loss), logit_chunk=5)


def test_an_attribute_of_a_class_or_function_declares_it_too(scene, offer):
    expected = scene.run(factored=(), teacher=top(scene, 3), kd_loss_type=offer(kl))
    assert_same(scene.run(factored=(), teacher=top(scene, 3), kd_loss_type=offer(Declared)), expected)

    def attributed(student_logits, teacher_logits, temperature):
        return kl(student_logits, teacher_logits, temperature)

    attributed.coarsens = True
    assert_same(scene.run(factored=(), teacher=top(scene, 3), kd_loss_type=offer(attributed)), expected)


def test_a_loss_that_takes_the_sparse_teacher_itself_need_not_declare_it(scene, offer):
    scene.run(factored=(), teacher=top(scene, 3), kd_loss_type=offer(at_ids))


def test_a_dense_teacher_is_taken_without_a_declaration(scene, offer):
    scene.run(factored=(), kd_loss_type=offer(undeclared))


def test_a_callable_of_textbrewers_maps_may_declare_it(scene):
    from kdplug import KD_LOSS_MAP

    def by_position(logits_S, logits_T, temperature=1):
        return kl(logits_S, logits_T, temperature).value

    KD_LOSS_MAP["by_position"] = by_position
    with pytest.raises(OutputsError, match="does not declare coarsens"):
        scene.run(factored=(), teacher=top(scene, 3), kd_loss_type="by_position")
    by_position.coarsens = True
    found = scene.run(factored=(), teacher=top(scene, 3), kd_loss_type="by_position")
    assert found[0] > 0


@pytest.mark.parametrize("factored", [(), ("student",)])
def test_terms_at_several_temperatures_read_one_teacher(scene, offer, factored):
    offer(kl, name="kl")
    dense = scene.logits("teacher", factored=False)
    terms = [{"loss": "kl", "temperature": 1.0}, {"loss": "kl", "weight": 0.5, "temperature": 4.0}]
    alone = [
        scene.run(
            factored=factored, teacher=SparseLogits.top(dense, 3, term["temperature"]), terms=[term], logit_chunk=5
        )
        for term in terms
    ]
    both = scene.run(factored=factored, teacher=SparseLogits.top(dense, 3, (1.0, 4.0)), terms=terms, logit_chunk=5)
    torch.testing.assert_close(both[0], alone[0][0] + alone[1][0], rtol=1e-12, atol=0)
    for found, *parts in zip(both[1], *(one[1] for one in alone), strict=True):
        torch.testing.assert_close(found, sum(parts), rtol=1e-10, atol=1e-13)


def test_a_temperature_that_no_tail_has_is_an_error_that_lists_those_there_are(scene, offer):
    offer(kl, name="kl")
    teacher = SparseLogits.top(scene.logits("teacher", factored=False), 3, (1.0, 4.0))
    with pytest.raises(OutputsError, match=r"^terms\.1\.temperature: is 2, but .* were taken at 1 and 4: a tail"):
        scene.run(factored=(), teacher=teacher, terms=[{"loss": "kl", "temperature": one} for one in (1.0, 2.0)])
