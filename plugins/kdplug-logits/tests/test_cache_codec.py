"""What a cache codec keeps, what that costs, and how far off it is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kdplug
from kdplug import Encoded, FactoredLogits, Ragged, SettingError, SparseLogits
from kdplug_logits.codec.hidden import Hidden
from kdplug_logits.codec.packing import quantize, restore
from kdplug_logits.codec.sampled import Sampled
from kdplug_logits.codec.topk_tail import TopkTail

VOCABULARY = 152_064
CODECS = {
    "top-k, 16 bits": TopkTail(k=4),
    "top-k, 8 bits": TopkTail(k=4, bits=8),
    "sampled": Sampled(rounds=9),
    "dense": kdplug.cache_codecs.build("dense").target,
    "hidden": Hidden(),
}
SPARSE = [name for name in CODECS if name[0] in "ts"]


def logits_of(items, classes, seed=0, scale=3.0):
    return scale * torch.randn(items, classes, generator=torch.Generator().manual_seed(seed))


def given_to(codec, items=6, classes=11, seed=0):
    """Logits in the form that a codec takes."""
    if codec.takes_factored:
        return FactoredLogits(logits_of(items, 5, seed), logits_of(classes, 5, seed=99), logits_of(1, classes)[0])
    return logits_of(items, classes, seed)


def there_and_back(codec, logits, temperature=2.0, seed=0):
    parts = codec.encode(logits, temperature=temperature, seed=seed).parts
    return codec.decode(parts, codec.shared(logits), classes=logits.shape[-1], temperature=temperature)


def distribution(found, temperature=2.0):
    """The teacher's distribution as a codec gives it back: over the classes that are kept, 0 elsewhere."""
    if isinstance(found, SparseLogits):
        weights = found.log_probs.exp() if found.weights is None else found.weights
        return torch.zeros(found.shape).scatter_add(-1, found.ids, weights)
    dense = found.dense() if isinstance(found, FactoredLogits) else found
    return (dense.float() / temperature).softmax(-1)


def bytes_of(encoded: Encoded) -> int:
    parts = [tensor for part in encoded.parts.values() for tensor in (part if isinstance(part, Ragged) else (part,))]
    return sum(tensor.nbytes for tensor in parts)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_it_is_what_a_config_may_name(codec):
    assert isinstance(codec, kdplug.CacheCodec)


@pytest.mark.parametrize("name", [name for name in CODECS if name != "sampled"])
def test_what_is_kept_of_several_is_what_is_kept_of_each(name):
    codec = CODECS[name]
    logits = given_to(codec)
    whole = codec.encode(logits, temperature=2.0, seed=0).parts
    for place in range(6):
        one = logits.at(torch.tensor([place])) if codec.takes_factored else logits[place : place + 1]
        for name, part in codec.encode(one, temperature=2.0, seed=0).parts.items():
            assert torch.equal(part, whole[name][place : place + 1])


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_parts_of_no_item_give_back_no_item(codec):
    logits = given_to(codec)
    kept = codec.encode(logits, temperature=2.0, seed=0).parts
    none = {
        name: Ragged(part.values[:0], part.counts[:0]) if isinstance(part, Ragged) else part[:0]
        for name, part in kept.items()
    }
    assert tuple(codec.decode(none, codec.shared(logits), classes=11, temperature=2.0).shape) == (0, 11)


@pytest.mark.parametrize("name", [*SPARSE, "dense"])
def test_a_class_that_the_teacher_rules_out_gets_nothing(name):
    logits = logits_of(5, 6)
    logits[:, 2:] = -torch.inf
    found = distribution(there_and_back(CODECS[name], logits))
    assert not found[:, 2:].any()
    torch.testing.assert_close(found.sum(-1), torch.ones(5), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_without_a_distribution_are_refused(name, bad):
    logits = logits_of(5, 6)
    logits[3, 1] = bad
    with pytest.raises(SettingError, match="highest logit is not finite in 1 of 5 items"):
        CODECS[name].encode(logits, temperature=1.0, seed=0)


@pytest.mark.parametrize("scale", [1e4, 1e-6])
@pytest.mark.parametrize("name", SPARSE)
def test_logits_of_any_size_are_kept(name, scale):
    found = there_and_back(CODECS[name], logits_of(5, 6, scale=scale))
    assert distribution(found).isfinite().all()


@given(
    seed=st.integers(0, 100), bits=st.sampled_from([8, 16]), k=st.integers(1, 12), scale=st.sampled_from([0.1, 3, 30])
)
def test_top_k_is_off_by_no_more_than_it_says_and_that_is_bounded(seed, bits, k, scale):
    codec, logits = TopkTail(k=k, bits=bits), logits_of(4, 11, seed, scale)
    kept = codec.encode(logits, temperature=2.0, seed=0)
    found = codec.decode(kept.parts, {}, classes=11, temperature=2.0)
    true = (logits / 2).log_softmax(-1)
    rest = true.scatter(1, found.ids, -torch.inf).logsumexp(1)
    off = (found.log_probs - true.gather(1, found.ids)).abs().max().item()
    off_tail = (found.tail - rest).masked_fill(rest.isinf(), 0.0).abs().max().item()
    assert max(off, off_tail) == pytest.approx(kept.error, abs=1e-6)
    reach, rounding = (true.max(1).values - true.min(1).values).max(), true.abs().max() / 2048
    bound = true.abs().max() / 256 if bits == 16 else reach / 253 + rounding
    assert off <= bound + 1e-6
    assert off_tail <= rest.masked_fill(rest.isinf(), 0.0).abs().max() / 2048


@given(seed=st.integers(0, 100), k=st.integers(1, 11))
def test_mass_and_tail_of_top_k_add_up_to_one(seed, k):
    logits = logits_of(4, 11, seed)
    kept = TopkTail(k=k).encode(logits, temperature=2.0, seed=0)
    true = (logits / 2).softmax(-1).topk(k).values.sum(-1)
    torch.testing.assert_close(kept.kept_mass, true, rtol=0, atol=1e-6)
    tail = kept.parts["tail"].float().exp()
    torch.testing.assert_close(true + tail, torch.ones(4), rtol=0, atol=2e-3)


def test_steps_of_eight_bits_are_finest_where_a_class_is_likely():
    log_probs = torch.linspace(0, -20, 64).unsqueeze(0) - 0.01
    off = (restore(*quantize(log_probs)) - log_probs).abs()[0]
    assert off[:16].mean() < off[-16:].mean() / 2
    assert off.max() <= 20 / 253 + 20 / 2048


@pytest.mark.parametrize(
    "logits", [torch.zeros(3, 5), torch.tensor([[0.0, -torch.inf, -torch.inf]])], ids=["flat", "one"]
)
def test_eight_bits_hold_items_whose_log_probabilities_do_not_differ(logits):
    found = there_and_back(TopkTail(k=5, bits=8), logits)
    torch.testing.assert_close(found.log_probs.exp(), logits.softmax(-1), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("codec", "limit"), [(TopkTail(), 280), (TopkTail(bits=8), 215)])
def test_a_large_vocabulary_takes_few_bytes(codec, limit):
    assert bytes_of(codec.encode(logits_of(3, VOCABULARY), temperature=1.0, seed=0)) <= 3 * limit


def zipf(items, classes=VOCABULARY):
    """Teachers that are sure to about the degree of a language model: about 12 different classes in 50 draws."""
    ranks = torch.arange(1, classes + 1, dtype=torch.float32)
    return -1.9 * ranks.log().expand(items, -1)


def test_a_sample_of_a_distribution_like_that_of_text_takes_few_bytes():
    kept = Sampled().encode(zipf(40), temperature=1.0, seed=0)
    assert 8 < kept.parts["drawn"].counts.float().mean() < 14
    assert bytes_of(kept) <= 40 * 45


def test_a_sample_is_the_distribution_on_average():
    logits = logits_of(3, 7)
    true = (logits / 2).softmax(-1)
    codec = Sampled(rounds=5)
    found = torch.stack([distribution(there_and_back(codec, logits, seed=seed)) for seed in range(2000)])
    bound = 5 * (true * (1 - true) / 5 / 2000).sqrt()
    assert ((found.mean(0) - true).abs() <= bound).all()


def test_strata_make_a_sample_vary_less_than_independent_draws_would():
    logits = logits_of(3, 7)
    true = (logits / 2).softmax(-1)
    found = torch.stack([distribution(there_and_back(Sampled(rounds=20), logits, seed=seed)) for seed in range(500)])
    independent = true * (1 - true) / 20
    assert (found.var(0) <= 1.1 * independent).all()
    assert found.var(0).sum() < 0.6 * independent.sum()


def test_a_sample_depends_on_its_seeds_and_on_nothing_else():
    logits = logits_of(6, 11)
    draw = [there_and_back(Sampled(seed=own), logits, seed=seed) for own, seed in ((0, 0), (0, 0), (0, 1), (1, 0))]
    found = [distribution(one) for one in draw]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])


def test_the_weights_of_a_sample_add_up_to_one():
    found = there_and_back(Sampled(rounds=50), logits_of(6, 11))
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(6))


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 2**-11), ("bfloat16", 2**-8), ("float32", 0)])
def test_dense_logits_are_off_by_the_rounding_of_their_dtype(dtype, bound):
    codec, logits = kdplug.cache_codecs.build({"name": "dense", "dtype": dtype}).target, logits_of(6, 11)
    kept = codec.encode(logits, temperature=1.0, seed=0)
    assert (kept.error == 0) == (bound == 0)
    assert kept.error <= bound * logits.abs().max()


def test_a_logit_beyond_float16_is_refused():
    with pytest.raises(
        SettingError,
        match=r"^dtype: a logit has the absolute value 70000, which float16 cannot represent\. Set dtype: bfloat16",
    ):
        CODECS["dense"].encode(torch.tensor([[7e4, 0.0]]), temperature=1.0, seed=0)


@pytest.mark.parametrize("more", [{}, {"bias": torch.arange(11.0)}, {"scale": 0.5, "softcap": 3.0}])
def test_hidden_states_give_back_every_logit_exactly(more):
    logits = FactoredLogits(logits_of(6, 5), logits_of(11, 5, seed=1), **more)
    assert torch.equal(there_and_back(Hidden(), logits).dense(), logits.dense())


def test_hidden_states_need_logits_that_are_not_multiplied_out():
    with pytest.raises(
        SettingError, match=r"Return kdplug\.FactoredLogits\(hidden, head\.weight, head\.bias\) as logits"
    ):
        Hidden().encode(logits_of(2, 3), temperature=1.0, seed=0)


def test_the_temperature_is_that_of_the_recipe():
    logits = logits_of(4, 11)
    found = there_and_back(TopkTail(k=11), logits, temperature=5.0)
    assert found.temperature == 5.0
    torch.testing.assert_close(distribution(found), (logits / 5).softmax(-1), rtol=0.02, atol=0)
    assert math.isinf(found.tail.max().item())


def gradient(loss, teacher, student, **inputs):
    """What a kd term gives to the student's logits."""
    config = kdplug.DistillationConfig(temperature=2, kd_loss_type=loss)
    leaf = student.clone().requires_grad_()
    kdplug.Objective(config)(student={"logits": leaf}, teacher={"logits": teacher, **inputs}).total.backward()
    return leaf.grad


def test_the_gradient_of_a_sample_is_that_of_the_whole_teacher_on_average():
    teacher, student = logits_of(4, 9), logits_of(4, 9, seed=5)
    codec = Sampled(rounds=20)
    found = [gradient("sampled", there_and_back(codec, teacher, seed=seed), student) for seed in range(300)]
    full = gradient("kl", teacher, student)
    assert (torch.stack(found).mean(0) - full).norm() < 0.02 * full.norm()
    assert (found[0] - full).norm() > 0.05 * full.norm()


@pytest.mark.parametrize("loss", ["kl", "reverse_kl", "jsd", "tvd"])
def test_top_k_of_every_class_gives_the_gradient_of_the_whole_teacher(loss):
    teacher, student = logits_of(4, 9), logits_of(4, 9, seed=5)
    found = gradient(loss, there_and_back(TopkTail(k=9), teacher), student)
    torch.testing.assert_close(found, gradient(loss, teacher, student), rtol=0.02, atol=1e-3)


def test_hidden_states_give_the_gradient_of_the_whole_teacher():
    teacher, student = given_to(Hidden()), logits_of(6, 11, seed=5)
    torch.testing.assert_close(
        gradient("kl", there_and_back(Hidden(), teacher), student),
        gradient("kl", teacher.dense(), student),
        rtol=1e-5,
        atol=1e-7,
    )


def test_a_sample_needs_the_loss_that_is_made_for_it():
    sample = there_and_back(Sampled(), logits_of(4, 9))
    with pytest.raises(kdplug.OutputsError, match="needs the full distribution"):
        gradient("kl", sample, logits_of(4, 9))
    with pytest.raises(kdplug.OutputsError, match="have no weights, so they are not a sample"):
        gradient("sampled", there_and_back(TopkTail(k=3), logits_of(4, 9)), logits_of(4, 9))


def test_top_k_and_tail_give_the_gradient_of_the_divergence_over_one_category_more():
    teacher, student = logits_of(4, 40), logits_of(4, 40, seed=5)
    found = gradient("kl", there_and_back(TopkTail(k=6), teacher), student)
    leaf = student.double().requires_grad_()
    p, q = (teacher.double() / 2).softmax(-1), (leaf / 2).softmax(-1)
    ids = p.topk(6).indices
    p, q = (torch.cat([one.gather(1, ids), 1 - one.gather(1, ids).sum(1, keepdim=True)], 1) for one in (p, q))
    (4 * (p * (p / q).log()).sum(1).mean()).backward()
    torch.testing.assert_close(found.double(), leaf.grad, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("bits", [8, 16])
def test_with_a_tail_at_other_temperatures_a_top_k_is_as_close_there_as_at_its_own(bits):
    logits, codec = logits_of(64, 1000, scale=4.0), TopkTail(k=32, bits=bits)
    found, error = there_and_back(codec, logits, 1.0), codec.encode(logits, temperature=1.0, seed=0).error
    several = replace(found, tails=SparseLogits.top(logits, 32, (1.0, 2.0, 4.0)).tails)
    for temperature in (2.0, 4.0):
        derived = several.at_temperature(temperature)
        true = (logits.double() / temperature).log_softmax(-1).gather(-1, derived.ids)
        assert (derived.log_probs - true).abs().max() <= error
        mass = derived.log_probs.exp().sum(-1) + derived.tail.exp()
        torch.testing.assert_close(mass, torch.ones(64), rtol=0, atol=1e-5)
