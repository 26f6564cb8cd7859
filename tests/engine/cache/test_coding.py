"""Logits that a codec keeps come back where they were, whatever batch they come back in."""

from __future__ import annotations

import pytest
import torch
from codec_specimen import Positive, Whole
from hypothesis import given
from hypothesis import strategies as st

from kdplug import Encoded, FactoredLogits, SparseLogits
from kdplug.engine.cache.coding import CodedHead, Coding, Reader, Shared, encode, pack, shared_by, unpack
from kdplug.engine.cache.shard import Column
from kdplug.errors import RunError, SettingError

NAME = "0/logits/0"
CPU = torch.device("cpu")
CODECS = {"whole": Whole(shift=0.5), "positive": Positive()}


def logits_of(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def come_back(coding, coded, order=None):
    """What is read of the examples in some order, after a way through columns."""
    columns = {name: Column.join([row.unsqueeze(0) for row in rows]) for name, rows in coded.rows.items()}
    order = range(coded.shape[0]) if order is None else order
    rows = [{name: column.row(place) for name, column in columns.items()} for place in order]
    shared = {f"{NAME}@{key}": one for key, one in coding.codec.shared(None).items()}
    reader = Reader(coding, NAME, coded.head, Shared(shared))
    return reader.decode(rows, torch.stack(reader.numbered(rows)), CPU)


@given(st.lists(st.booleans(), max_size=40))
def test_a_mask_survives_its_packing(bits):
    mask = torch.tensor(bits, dtype=torch.bool)
    assert torch.equal(unpack(pack(mask), len(bits)), mask)
    assert len(pack(mask)) == -(-len(bits) // 8)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@given(seed=st.integers(0, 50), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_every_item_that_counts_comes_back_to_its_place_in_any_order(codec, seed, share):
    coding, logits = Coding(codec, "x", 1.0), logits_of(4, 5, 3, seed=seed)
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(seed)) < share
    coded = encode(coding, NAME, logits.masked_fill(~mask[..., None], torch.nan), mask, seed=0)
    back = come_back(coding, coded, order=[2, 0, 3, 1])
    wanted = logits.clamp_min(0) if codec is CODECS["positive"] else logits
    assert torch.equal(back.mask, mask[[2, 0, 3, 1]])
    torch.testing.assert_close(back.logits[back.mask], wanted[[2, 0, 3, 1]][back.mask], rtol=0, atol=1e-15)
    assert back.logits.isfinite().all()


def test_logits_of_a_classifier_have_no_items_to_lay_out():
    coding, logits = Coding(CODECS["whole"], "x", 1.0), logits_of(6, 3)
    back = come_back(coding, encode(coding, NAME, logits, None, seed=0))
    torch.testing.assert_close(back.logits, logits, rtol=0, atol=1e-15)


@pytest.mark.parametrize("left_out", [0, 100])
def test_what_a_mask_leaves_out_costs_one_bit(left_out):
    coding = Coding(CODECS["whole"], "x", 1.0)
    mask = torch.arange(8 + left_out).expand(2, -1) < 8
    coded = encode(coding, NAME, logits_of(2, 8 + left_out, 3), mask, seed=0)
    sizes = {name: sum(row.nbytes for row in rows) for name, rows in coded.rows.items()}
    assert sizes[f"{NAME}@all"] == 2 * 8 * 3 * 8
    assert sizes[f"{NAME}@@mask"] == 2 * -(-(8 + left_out) // 8)
    assert coded.tally.items == 16
    assert coded.tally.coverage == 16 / (16 + 2 * left_out)


def test_logits_in_factors_are_multiplied_out_in_pieces(monkeypatch):
    monkeypatch.setattr("kdplug.engine.cache.coding._CHUNK", 6)
    sizes = []
    codec = Whole()
    monkeypatch.setattr(Whole, "encode", _noting(Whole.encode, sizes))
    factors = FactoredLogits(logits_of(2, 3, 4), logits_of(3, 4, seed=1))
    coding = Coding(codec, "x", 1.0)
    back = come_back(coding, encode(coding, NAME, factors, None, seed=0))
    assert sizes == [2, 2, 2]
    torch.testing.assert_close(back.logits, factors.dense())


def _noting(encode_, sizes):
    def noting(self, logits, **options):
        sizes.append(len(logits))
        return encode_(self, logits, **options)

    return noting


def test_no_two_pieces_heads_or_batches_share_a_seed(monkeypatch):
    monkeypatch.setattr("kdplug.engine.cache.coding._CHUNK", 6)
    found = []

    def encode_(self, logits, *, temperature, seed):
        found.append(seed)
        return Encoded({"all": logits})

    monkeypatch.setattr(Whole, "encode", encode_)
    coding, factors = Coding(Whole(), "x", 1.0), FactoredLogits(logits_of(2, 3, 4), logits_of(3, 4, seed=1))

    def seeds():
        found.clear()
        for batch in range(20):
            for name in ("0/logits/0", "0/logits/1", "1/logits/0"):
                encode(coding, name, factors, None, seed=batch)
        return list(found)

    first = seeds()
    assert len(set(first)) == len(first) == 20 * 3 * 3
    assert all(0 <= seed < 2**63 for seed in first)
    assert seeds() == first


class Named(Whole):
    """Keeps what it kept under another name, and notes what it is shown."""

    def __init__(self, part):
        super().__init__()
        self.part, self.seen = part, []

    def shared(self, logits):
        self.seen.append(logits)
        return super().shared(logits)

    def encode(self, logits, **options):
        return Encoded({self.part: logits})

    def decode(self, parts, shared, **_):
        return parts[self.part]


@pytest.mark.parametrize("part", ["mask", "items", "counts"])
def test_a_part_may_have_any_name(part):
    coding, logits = Coding(Named(part), "x", 1.0), logits_of(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    back = come_back(coding, encode(coding, NAME, logits, mask, seed=0))
    assert torch.equal(back.logits[back.mask], logits[mask])


FACTORS = FactoredLogits(logits_of(2, 3, 5), logits_of(4, 5, seed=1))


@pytest.mark.parametrize("logits", [FACTORS, FACTORS.dense()], ids=["in factors", "multiplied out"])
def test_what_is_kept_once_is_made_of_items_that_count_in_the_form_that_the_codec_takes(logits):
    codec, mask = Named("all"), torch.tensor([[True, True, False], [False, False, False]])
    shared_by(Coding(codec, "x", 1.0), NAME, logits, mask)
    shared_by(Coding(codec, "x", 1.0), NAME, logits, torch.zeros_like(mask))
    torch.testing.assert_close(codec.seen[0], FACTORS.dense()[0, :2])
    assert codec.seen[1].shape == (1, 4)


def test_what_a_codec_refuses_is_an_error_that_names_the_output(monkeypatch):
    def refuse(self, logits, **options):
        raise SettingError("too wild", field="k")

    monkeypatch.setattr(Whole, "encode", refuse)
    with pytest.raises(
        RunError, match=r"^teacher_cache_codec: the teacher's 0/logits/0 cannot be encoded: k: too wild$"
    ):
        encode(Coding(Whole(), "x", 1.0), NAME, logits_of(2, 3), None, seed=0)


def test_a_codec_that_gives_back_other_items_is_an_error(monkeypatch):
    coding = Coding(Whole(), "x", 1.0)
    coded = encode(coding, NAME, logits_of(4, 3), None, seed=0)
    monkeypatch.setattr(Whole, "decode", lambda self, parts, shared, **_: parts["all"][1:])
    with pytest.raises(RunError, match=r"must decode 4 items of 3 classes to logits \[4, 3\], got \[3, 3\]"):
        come_back(coding, coded)


def test_a_head_survives_its_manifest():
    import json
    from dataclasses import asdict

    head = CodedHead(3, masked=True, parts={"ids": False, "drawn": True})
    assert CodedHead(**json.loads(json.dumps(asdict(head)))) == head


class Rounded:
    """The top two classes, rounded, with a tail. It states the rounding error at its own temperature."""

    uses_temperature = True
    takes_factored = False

    def encode(self, logits, *, temperature, seed):
        top = SparseLogits.top(logits, 2, temperature)
        kept = top.log_probs.round()
        parts = {"ids": top.ids, "log_probs": kept, "tail": top.tail}
        return Encoded(parts, -top.tail.expm1(), float((kept - top.log_probs).abs().max()))

    def decode(self, parts, shared, *, classes, temperature):
        return SparseLogits(**parts, classes=classes, temperature=temperature)


def test_the_largest_error_is_that_of_all_temperatures():
    logits = torch.tensor([[-0.45, -1.55, -1.9]], dtype=torch.float64)
    alone, both = (encode(Coding(Rounded(), "x", 1.0, others), NAME, logits, None, seed=0) for others in ((), (1.1,)))
    true = (logits / 1.1).log_softmax(-1)[:, :2]
    tail = (logits / 1.1).softmax(-1)[:, 2]
    kept = logits.log_softmax(-1)[:, :2].round() / 1.1
    stored = kept - kept.logsumexp(-1, keepdim=True) + (1 - tail).log()
    expected = float((true - stored).abs().max())
    assert both.tally.error == pytest.approx(max(alone.tally.error, expected))
    assert expected > alone.tally.error
