"""What the losses are to each other."""

from __future__ import annotations

import math

import logits_oracle as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logits_strategies import LOSSES, TEMPERED, UNTEMPERED, ZERO_AT_EQUALITY, Case, case, cases, seeds

from kdplug_logits import adaptive_kl, dkd, kl, topk
from kdplug_logits.label import labelled

examples = settings(max_examples=15, deadline=None)


def close(first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-9) -> bool:
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ZERO_AT_EQUALITY)
@given(drawn=cases())
@examples
def test_divergences_are_zero_with_a_gradient_of_zero_where_the_student_is_the_teacher(name: str, drawn: Case) -> None:
    drawn.teacher = drawn.student.clone()
    assert abs(drawn.loss(name).value.item()) < 1e-9
    assert drawn.gradient(name).abs().max() < 1e-9


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("uld", "ranking")])
@given(drawn=cases())
@examples
def test_losses_are_never_negative(name: str, drawn: Case) -> None:
    assert drawn.loss(name).value.item() >= -1e-12


@pytest.mark.parametrize(
    "name", ["kl", "reverse_kl", "jsd", "skew_kl", "tvd", "alpha_beta", "uld", "topk", "logit_std"]
)
@given(drawn=cases(), shift=st.floats(-50, 50))
@examples
def test_adding_a_number_to_all_logits_of_a_side_changes_nothing(name: str, drawn: Case, shift: float) -> None:
    expected = drawn.loss(name).value
    drawn.student = drawn.student + shift
    assert close(drawn.loss(name).value, expected, 1e-7)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("dkd", "nkd", "wsld", "sampled")])
@given(drawn=cases(), seed=seeds)
@examples
def test_the_order_of_classes_does_not_matter(name: str, drawn: Case, seed: int) -> None:
    expected = drawn.loss(name).value
    order = torch.randperm(drawn.student.shape[-1], generator=torch.Generator().manual_seed(seed))
    drawn.student, drawn.teacher = drawn.student[..., order], drawn.teacher[..., order]
    assert close(drawn.loss(name).value, expected)


@pytest.mark.parametrize("name", ["tvd", "uld", "jsd"])
@given(drawn=cases())
@examples
def test_some_distances_are_symmetric(name: str, drawn: Case) -> None:
    swapped = Case(drawn.teacher, drawn.student, drawn.labels, drawn.temperature)
    assert close(drawn.loss(name).value, swapped.loss(name).value)


@given(drawn=cases())
@examples
def test_reversed_losses_are_the_others_with_the_sides_swapped(drawn: Case) -> None:
    swapped = Case(drawn.teacher, drawn.student, drawn.labels, drawn.temperature)
    assert close(drawn.loss("kl").value, swapped.loss("reverse_kl").value)
    assert close(drawn.loss("skew_kl", skew=0.3).value, swapped.loss("skew_reverse_kl", skew=0.3).value)
    assert close(drawn.loss("jsd", beta=0.3).value, swapped.loss("jsd", beta=0.7).value)
    assert close(
        drawn.loss("alpha_beta", alpha=0.3, beta=0.6).value, swapped.loss("alpha_beta", alpha=0.6, beta=0.3).value
    )


@given(drawn=cases(), beta=st.floats(0.01, 0.99))
@examples
def test_jsd_is_a_sum_of_skewed_divergences(drawn: Case, beta: float) -> None:
    parts = beta * drawn.loss("skew_kl", skew=beta).value
    parts = parts + (1 - beta) * drawn.loss("skew_reverse_kl", skew=1 - beta).value
    assert close(drawn.loss("jsd", beta=beta).value, parts)
    normalized = drawn.loss("jsd", beta=beta, normalize=True).value
    assert close(normalized, parts / min(beta, 1 - beta))


@pytest.mark.parametrize(("near", "limit"), [(1e-6, "kl"), (1 - 1e-6, "reverse_kl")])
def test_normalized_jsd_goes_to_kl_and_reverse_kl(near: float, limit: str) -> None:
    found = case(scale=1.0)
    assert close(found.loss("jsd", beta=near, normalize=True).value, found.loss(limit).value, 1e-4)
    assert close(found.gradient("jsd", beta=near, normalize=True), found.gradient(limit), 1e-4)
    assert found.loss("jsd", beta=near).value < 1e-5 * found.loss(limit).value


@pytest.mark.parametrize(("name", "limit"), [("skew_kl", "kl"), ("skew_reverse_kl", "reverse_kl")])
def test_skewed_divergences_go_to_the_plain_ones_and_to_zero(name: str, limit: str) -> None:
    found = case(scale=1.0)
    assert close(found.loss(name, skew=1e-7).value, found.loss(limit).value, 1e-5)
    assert torch.equal(found.loss(name, skew=0).value, found.loss(limit).value)
    assert found.loss(name, skew=1 - 1e-7).value < 1e-6


@pytest.mark.parametrize("name", ["skew_kl", "skew_reverse_kl"])
@given(drawn=cases(), skew=st.floats(0.01, 0.9))
@examples
def test_skewed_divergences_are_bounded(name: str, drawn: Case, skew: float) -> None:
    assert drawn.loss(name, skew=skew, t2=False).value.item() <= -math.log(skew) + 1e-12


@given(drawn=cases())
@examples
def test_total_variation_is_bounded_by_kl_as_pinsker_says(drawn: Case) -> None:
    first = tuple(side.reshape(-1, side.shape[-1])[:1] for side in (drawn.student, drawn.teacher))
    each = Case(*first, drawn.labels)
    assert each.loss("tvd").value <= (each.loss("kl").value / 2).sqrt() + 1e-12
    assert each.loss("tvd").value <= 1


@pytest.mark.parametrize(("alpha", "beta", "limit"), [(1.0, 0.0, "kl"), (0.0, 1.0, "reverse_kl")])
def test_alpha_beta_at_its_corners_is_kl_and_reverse_kl(alpha: float, beta: float, limit: str) -> None:
    found = case()
    assert close(found.loss("alpha_beta", alpha=alpha, beta=beta).value, found.loss(limit).value)
    assert close(found.gradient("alpha_beta", alpha=alpha, beta=beta), found.gradient(limit))


@pytest.mark.parametrize("power", [0.5, 1.0, 1.7])
def test_alpha_beta_is_continuous_where_one_of_them_goes_to_zero(power: float) -> None:
    found = case(scale=1.0)
    for powers, near in (((power, 0), (power, 1e-6)), ((0, power), (1e-6, power))):
        expected = oracle.alpha_beta(found.student, found.teacher, 1.0, *near)
        assert close(found.loss("alpha_beta", alpha=powers[0], beta=powers[1]).value, expected, 1e-4)


def test_alpha_beta_holds_hellinger_and_euclid() -> None:
    found = case()
    p, q = found.teacher.softmax(-1), found.student.softmax(-1)
    hellinger = (p.sqrt() - q.sqrt()).square().sum(-1).mean() / 2
    assert close(found.loss("alpha_beta", alpha=0.5, beta=0.5).value, 4 * hellinger)
    assert close(found.loss("alpha_beta", alpha=1, beta=1).value, (p - q).square().sum(-1).mean() / 2)


def test_alpha_beta_without_either_is_an_error() -> None:
    import kdplug

    with pytest.raises(kdplug.SettingError, match="beta: alpha_beta: alpha and beta must not both be 0"):
        case().loss("alpha_beta", alpha=0, beta=0)


@given(drawn=cases())
@examples
def test_adaptive_kl_whose_head_holds_all_is_kl(drawn: Case) -> None:
    assert torch.equal(drawn.loss("adaptive_kl", mass=1).value, drawn.loss("kl").value)
    assert torch.equal(drawn.gradient("adaptive_kl", mass=1), drawn.gradient("kl"))


def test_adaptive_kl_whose_head_holds_all_is_kl_in_float32_with_classes_ruled_out() -> None:
    found = case(16, 5000, dtype=torch.float32)
    found.teacher[:, 7] = -math.inf
    assert torch.equal(found.loss("adaptive_kl", mass=1).value, found.loss("kl").value)
    assert torch.equal(found.gradient("adaptive_kl", mass=1), found.gradient("kl"))


@given(drawn=cases())
@examples
def test_dkd_weighted_by_the_teachers_doubt_is_kl(drawn: Case) -> None:
    items = labelled("dkd", drawn.student, drawn.teacher, drawn.labels)
    student, teacher = drawn.student.log_softmax(-1), drawn.teacher.log_softmax(-1)
    doubt = 1 - items.of_label(teacher).exp()
    whole = dkd.target_per_item(items, student, teacher) + doubt * dkd.others_per_item(items, student, teacher)
    assert close(whole, kl.kl_terms(student, teacher).sum(-1), 1e-7)


def test_dkd_has_a_part_for_each_weight() -> None:
    found = case()
    target, others = found.loss("dkd", alpha=1, beta=0).value, found.loss("dkd", alpha=0, beta=1).value
    assert close(found.loss("dkd", alpha=2, beta=3).value, 2 * target + 3 * others)


def test_dkd_stays_exact_where_the_teacher_is_nearly_sure() -> None:
    found = case(4, 6, scale=1.0)
    found.teacher = found.teacher.scatter(-1, found.labels.unsqueeze(-1), 60.0)
    single = Case(found.student.float(), found.teacher.float(), found.labels)
    expected = oracle.dkd(
        *(side.scatter(-1, found.labels.unsqueeze(-1), -9.0) for side in (found.student, found.teacher)),
        1.0,
        found.labels,
        alpha=0,
    )
    assert torch.allclose(single.loss("dkd", alpha=0).value.double(), expected, rtol=1e-4)


def test_the_others_of_nkd_are_those_of_dkd_and_the_teachers_entropy() -> None:
    found = case()
    entropy = Case(found.teacher, found.teacher, found.labels)
    part = [one.loss("nkd", gamma=1).value - one.loss("nkd", gamma=0).value for one in (found, entropy)]
    assert close(part[0] - part[1], found.loss("dkd", alpha=0, beta=1).value)


def test_nkd_leaves_the_label_at_temperature_one() -> None:
    found = case()
    at_one = found.loss("nkd", gamma=0).value
    found.temperature = 4.0
    assert torch.equal(found.loss("nkd", gamma=0).value, at_one)


def test_wsld_weighs_by_how_far_the_student_is_behind() -> None:
    teacher, label = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    equal = Case(teacher, teacher, label)
    entropy = torch.special.entr(teacher.softmax(-1)).sum()
    assert equal.loss("wsld").value.item() == pytest.approx((1 - math.exp(-1)) * entropy.item(), rel=1e-5)
    sure, wrong = (Case(torch.tensor([[size, 0.0, 0.0]]), teacher, label) for size in (9.0, -9.0))
    weights = [one.loss("wsld").value / oracle.cross_entropy(one.student, teacher) for one in (sure, equal, wrong)]
    assert weights[0] < weights[1] < weights[2] <= 1


@pytest.mark.parametrize("rest", ["tail", "zero", "renorm_teacher"])
@given(drawn=cases(), more=st.integers(0, 3))
@examples
def test_topk_of_all_classes_is_kl(rest: str, drawn: Case, more: int) -> None:
    k = drawn.student.shape[-1] + more
    assert close(drawn.loss("topk", k=k, rest=rest).value, drawn.loss("kl").value)


@given(drawn=cases(), k=st.integers(1, 9))
@examples
def test_topk_with_its_tail_never_exceeds_kl_and_grows_with_k(drawn: Case, k: int) -> None:
    values = [drawn.loss("topk", k=k).value, drawn.loss("topk", k=k + 1).value, drawn.loss("kl").value]
    assert values[0] <= values[1] + 1e-9 <= values[2] + 2e-9


def test_topk_alone_may_fall_below_zero_and_the_renormalised_one_may_not() -> None:
    student = torch.tensor([[1.0, 1.0, -9.0, -9.0]])
    found = Case(student, torch.tensor([[1.0, 1.0, 0.5, 0.5]]), torch.zeros(1))
    assert found.loss("topk", k=2, rest="zero").value < -0.1
    assert found.loss("topk", k=2, rest="renorm_teacher").value >= 0


def test_the_tail_of_topk_keeps_its_digits_where_it_is_small() -> None:
    log_probs = torch.tensor([[30.0, 29.0, 0.0, -1.0]]).log_softmax(-1)
    exact = log_probs.double().log_softmax(-1)[0, 2:].logsumexp(0)
    assert topk.rest_of(log_probs, torch.tensor([[0, 1]])).item() == pytest.approx(exact.item(), rel=1e-5)


@given(drawn=cases())
@examples
def test_uld_is_at_most_twice_the_total_variation_and_equal_in_the_same_order(drawn: Case) -> None:
    assert drawn.loss("uld").value <= 2 * drawn.loss("tvd").value + 1e-9
    drawn.student, drawn.teacher = drawn.student.sort(-1).values, drawn.teacher.sort(-1).values
    assert close(drawn.loss("uld").value, 2 * drawn.loss("tvd").value)


@given(drawn=cases(), seed=seeds)
@examples
def test_uld_does_not_see_which_class_is_which(drawn: Case, seed: int) -> None:
    order = torch.randperm(drawn.student.shape[-1], generator=torch.Generator().manual_seed(seed))
    expected = drawn.loss("uld").value
    drawn.teacher = drawn.teacher[..., order]
    assert close(drawn.loss("uld").value, expected)


@given(drawn=cases(least_classes=4), missing=st.integers(1, 3))
@examples
def test_uld_takes_vocabularies_of_two_sizes(drawn: Case, missing: int) -> None:
    for name in ("student", "teacher"):
        short = Case(drawn.student, drawn.teacher, drawn.labels, drawn.temperature)
        setattr(short, name, getattr(short, name)[..., :-missing])
        filled = Case(short.student, short.teacher, drawn.labels, drawn.temperature)
        padding = torch.full((*drawn.student.shape[:-1], missing), -math.inf)
        setattr(filled, name, torch.cat([getattr(filled, name), padding], -1))
        expected = oracle.uld(short.student, short.teacher, drawn.temperature)
        assert close(short.loss("uld").value, expected)
        assert close(filled.loss("uld").value, expected)


@given(drawn=cases(), size=st.floats(0.1, 10), shift=st.floats(-10, 10))
@examples
def test_logit_std_sees_neither_shift_nor_size(drawn: Case, size: float, shift: float) -> None:
    expected = drawn.loss("logit_std", eps=1e-30).value
    drawn.student, drawn.teacher = drawn.student * size + shift, drawn.teacher * size - shift
    assert close(drawn.loss("logit_std", eps=1e-30).value, expected, 1e-6)


def test_logit_std_is_kl_of_logits_that_are_standard_already() -> None:
    found = case()
    for name in ("student", "teacher"):
        side = getattr(found, name)
        setattr(found, name, (side - side.mean(-1, keepdim=True)) / side.std(-1, keepdim=True))
    assert close(found.loss("logit_std").value, found.loss("kl").value, 1e-6)


def test_adaptive_kl_lies_between_kl_and_reverse_kl_and_its_weight_is_a_constant() -> None:
    found = case(1, 6)
    parts = found.loss("kl").value, found.loss("reverse_kl").value
    tail = adaptive_kl.tail_share(found.student.log_softmax(-1), found.teacher.log_softmax(-1), 0.5)
    assert min(parts) <= found.loss("adaptive_kl").value <= max(parts)
    expected = (1 - tail) * found.gradient("kl") + tail * found.gradient("reverse_kl")
    assert close(found.gradient("adaptive_kl"), expected)


@pytest.mark.parametrize(("mass", "expected"), [(0.5, 0.5), (0.65, 0.5), (0.75, 0.25), (1.0, 0.0), (0.0, 0.5)])
def test_the_head_of_adaptive_kl_holds_the_first_class_and_what_fits_into_its_mass(
    mass: float, expected: float
) -> None:
    teacher, student = torch.tensor([0.5, 0.2, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.1, 0.3])
    gaps = (teacher - student).abs()
    head = {0.5: 1, 0.65: 1, 0.75: 2, 1.0: 4, 0.0: 1}[mass]
    found = adaptive_kl.tail_share(student.log(), teacher.log(), mass)
    assert found.item() == pytest.approx((gaps[head:].sum() / gaps.sum()).item(), abs=1e-6)


def test_dist_is_zero_for_probabilities_in_proportion_and_two_for_opposite_ones() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], dtype=torch.float64)
    uniform = torch.full_like(p, 1 / 3)
    halfway = Case((0.5 * p + 0.5 * uniform).log(), p.log(), torch.zeros(2))
    away = Case((uniform - 0.5 * (p - uniform)).log(), p.log(), torch.zeros(2))
    assert halfway.loss("dist").value.item() == pytest.approx(0.0, abs=1e-12)
    assert away.loss("dist", gamma=0).value.item() == pytest.approx(2.0)
    assert away.loss("dist").value.item() == pytest.approx(4.0)


def test_dist_of_one_item_is_its_first_part_and_a_constant() -> None:
    found = case(1, 5)
    assert close(found.loss("dist").value, found.loss("dist", gamma=0).value + 1)
    assert close(found.gradient("dist"), found.gradient("dist", gamma=0))


def test_bce_is_the_cross_entropy_of_a_class_against_zero() -> None:
    found = case()
    pairs = [torch.stack([side, torch.zeros_like(side)], -1).flatten(0, -2) for side in (found.student, found.teacher)]
    classes = found.student.shape[-1]
    assert close(found.loss("bce").value, classes * oracle.cross_entropy(*pairs))


@pytest.mark.parametrize("form", ["logistic", "hinge"])
@given(drawn=cases(), size=st.floats(0.1, 10))
@examples
def test_ranking_reads_the_teachers_order_alone(form: str, drawn: Case, size: float) -> None:
    expected = drawn.loss("ranking", form=form)
    drawn.teacher = (drawn.teacher * size / 30).tanh()
    found = drawn.loss("ranking", form=form)
    assert torch.equal(found.total, expected.total)
    assert found.count == expected.count


def test_ranking_counts_no_ties_and_no_candidate_that_is_ruled_out() -> None:
    teacher = torch.tensor([[2.0, 1.0, 1.0, -math.inf], [0.0, 0.0, 0.0, 0.0]])
    found = Case(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), teacher, torch.zeros(2))
    assert found.loss("ranking").count == 2
    assert not found.gradient("ranking")[0, 3]
    found.teacher = torch.zeros(2, 4)
    assert found.loss("ranking").value == 0
    assert not found.gradient("ranking").any()


# sampled draws by batch, a part of nkd has no temperature, a part of dist compares items
@pytest.mark.parametrize("name", sorted(set(TEMPERED) - {"sampled", "nkd", "dist"}))
def test_t2_multiplies_by_the_squared_temperature_of_each_item(name: str) -> None:
    found = case(3, 5)
    found.temperature = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    each = [
        Case(found.student[[i]], found.teacher[[i]], found.labels[[i]], float(found.temperature[i])) for i in range(3)
    ]
    plain = torch.stack([one.loss(name, t2=False).value for one in each])
    assert close(found.loss(name, t2=False).value, plain.mean())
    assert close(found.loss(name).value, (plain * found.temperature**2).mean())


def test_every_entry_is_named_here() -> None:
    assert set(UNTEMPERED) | set(TEMPERED) == set(LOSSES)


@given(drawn=cases(), gamma=st.floats(0, 5))
@examples
def test_the_other_part_of_nkd_is_nckd_and_the_teachers_entropy_there(drawn: Case, gamma: float) -> None:
    part = drawn.loss("nkd", gamma=gamma).value - drawn.loss("nkd", gamma=0.0).value
    nckd = drawn.loss("dkd", alpha=0.0, beta=1.0).value
    same = Case(drawn.teacher, drawn.teacher, drawn.labels, drawn.temperature)
    entropy = same.loss("nkd", gamma=1.0).value - same.loss("nkd", gamma=0.0).value
    assert close(part, gamma * (nckd + entropy), 1e-7)
