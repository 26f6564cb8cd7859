"""Special tokens around documents: detection, masks, and cutting of documents."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from task_scene import GPT2, TEXTS, first_batch, recipe, save_model, task_of, tokenizer, write_csv
from tokenizers.processors import TemplateProcessing
from torch.nn import functional
from two_tokenizer_scene import ALL_TEXTS, HARD
from two_tokenizer_scene import save as save_of_two

from kdplug import ConfigError, RunError
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe
from kdplug_tasks.text.document import Tokens, divided, packed
from kdplug_tasks.text.dual_tokenization import DualTokens, SideTokens, joined, pieces
from kdplug_tasks.text.frame import Frame, find_frame, sketch

PAIRS = [{"prompt": f"{text}: ", "completion": text.split()[-1]} for text in TEXTS * 4]
TEMPLATES = {
    "nothing": ("$A", [], ["</s>"]),
    "a begin": ("<s> $A", ["<s>"], ["</s>"]),
    "both": ("<s> $A </s>", ["<s>"], ["</s>"]),
    "an end": ("$A </s>", [], ["</s>"]),
    "two": ("<s> <unk> $A", ["<s>", "<unk>"], ["</s>"]),
    "another end": ("<s> $A <unk>", ["<s>"], ["<unk>"]),
}
"""Special tokens that a tokenizer adds, and those of a document."""


def _tokenizer(template="<s> $A", texts=TEXTS, vocab=300):
    made = tokenizer(texts, is_framed=False, vocab=vocab)
    special = [(token, made.convert_tokens_to_ids(token)) for token in ("<s>", "</s>", "<unk>")]
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, pair=f"{template} $B", special_tokens=special
    )
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts, prompts, and a teacher whose tokenizer adds a start token, like Llama's."""
    folder = tmp_path_factory.mktemp("frame")
    (folder / "text.txt").write_text("\n\n".join(TEXTS * 12), encoding="utf-8")
    write_csv(folder / "pairs.csv", PAIRS)
    write_csv(folder / "empty.csv", [*PAIRS, {"prompt": "", "completion": "good"}])
    brings = _tokenizer()
    ids = {f"{one}_token_id": getattr(brings, f"{one}_token_id") for one in ("bos", "eos", "pad")}
    save_model(folder / "teacher", "AutoModelForCausalLM", GPT2, brings=brings, vocab_size=len(brings), **ids)
    return folder


def _settings(folder, file="text.txt", **changes):
    given = {"data": {"train": str(folder / file), "test": 0.2}, "teacher": str(folder / "teacher"), "max_length": 16}
    documents = {"documents": "blank_line"} if file == "text.txt" else {}
    return {"name": "causal-lm", "student": {"from_teacher": {"layers": [0]}}, **documents, **given, **changes}


def _checked(settings):
    task = task_of(**settings)
    task.check()
    return task


def _ids(made, tokens):
    return made.convert_tokens_to_ids(tokens)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_frame_is_what_the_tokenizer_itself_puts_around_a_text(name):
    template, begin, end = TEMPLATES[name]
    made = _tokenizer(template)
    frame = find_frame(made, None, "tokenizer")
    assert frame == Frame(_ids(made, begin), _ids(made, end))
    bare = made("the plot", add_special_tokens=False)["input_ids"]
    whole = made("the plot")["input_ids"]
    assert [*frame.begin, *bare, *frame.end][: len(whole)] == whole


def test_a_begin_can_be_asked_for_and_left_out():
    made = _tokenizer("$A")
    assert find_frame(made, True, "tokenizer").begin == [made.bos_token_id]
    assert find_frame(_tokenizer("<s> <unk> $A"), True, "tokenizer").begin == _ids(made, ["<s>", "<unk>"])
    assert find_frame(_tokenizer(), False, "tokenizer").begin == []
    made.bos_token = None
    with pytest.raises(ConfigError, match=r"^add_bos_token: is true, but the tokenizer has no bos_token"):
        find_frame(made, True, "tokenizer")


def test_a_tokenizer_that_changes_the_text_itself_is_refused_unless_it_is_said_what_a_text_begins_with():
    class Odd:
        bos_token_id, eos_token_id = 1, 2

        def __call__(self, text, *, add_special_tokens=True, verbose=True):
            return {"input_ids": [7, 1, 8] if add_special_tokens else [7, 8]}

    with pytest.raises(ConfigError, match=r"^teacher: the tokenizer also inserts special tokens inside a text"):
        find_frame(Odd(), None, "teacher")
    assert find_frame(Odd(), True, "teacher") == Frame([1], [2])


@pytest.mark.parametrize("packing", [True, False])
def test_documents_begin_as_the_tokenizer_begins_them(folder, packing):
    task = _checked(_settings(folder, packing=packing))
    made = task.problem.processor.tokenizer
    for one in task.data("distillation").examples.items:
        assert one.ids[0] == made.bos_token_id
        assert not one.counts[0]
    whole = [
        token for one in task.data("distillation").examples.items for token in one.ids if token > made.eos_token_id
    ]
    texts = task._source.distillation.columns["text"]
    assert whole == [token for text in texts for token in made(text, add_special_tokens=False)["input_ids"]]


def test_a_begin_is_read_and_never_predicted(folder):
    task = task_of(**_settings(folder))
    batch, model = first_batch(task), task.build_teacher().eval()
    found = task.teacher_adaptor(batch, model(**batch))
    begin = task.problem.processor.tokenizer.bos_token_id
    assert (batch["input_ids"] == begin).sum() > len(batch["input_ids"])
    assert not (found["labels"] == begin).any()
    assert torch.equal(found["logits_mask"], found["labels"] != -100)


def test_the_loss_of_a_document_is_that_after_its_begin(folder):
    """The perplexity of a model trained with BOS is computed on texts with BOS."""
    task = _checked(_settings(folder, packing=False, max_length=40))
    model, made = task.build_teacher().eval(), task.problem.processor.tokenizer
    nats, count = 0.0, 0
    with torch.no_grad():
        for text in task._source.test.columns["text"]:
            ids = torch.tensor([[*made(text)["input_ids"], made.eos_token_id]])
            assert ids[0, 0] == made.bos_token_id
            nats += float(functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
        found = task.evaluate(model, [task.collate([one]) for one in task.data("test").examples.items])
    assert found["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-5)


def test_prompts_begin_with_it_too_and_completions_alone_count(folder):
    task = _checked(_settings(folder, "pairs.csv", prompts=True, max_length=40))
    made = task.problem.processor.tokenizer
    for one, row in zip(
        task.data("distillation").examples.items, task._source.distillation.columns["completion"], strict=True
    ):
        counted = [token for token, counts in zip(one.ids, one.counts, strict=True) if counts]
        assert one.ids[0] == made.bos_token_id
        assert counted == [*made(row, add_special_tokens=False)["input_ids"], made.eos_token_id]


def test_without_it_everything_is_as_it_was(folder):
    task = _checked(_settings(folder, add_bos_token=False))
    assert "The saved tokenizer adds '<s>' before a text, unlike this task (add_bos_token)" in task.about()
    made = task.problem.processor.tokenizer
    texts = task._source.distillation.columns["text"]
    whole = [
        token for text in texts for token in [*made(text, add_special_tokens=False)["input_ids"], made.eos_token_id]
    ]
    assert [token for one in task.data("distillation").examples.items for token in one.ids] == whole
    assert all(all(one.counts) for one in task.data("distillation").examples.items)


def test_max_length_has_to_leave_room(folder):
    with pytest.raises(
        ConfigError,
        match=r"^max_length: must be at least 3, got 2: each example begins with 1 special token and needs 2 more",
    ):
        task_of(**_settings(folder, max_length=2)).check()


def test_the_plan_shows_a_document_and_what_counts(folder, tmp_path):
    about = plan_recipe(recipe(_settings(folder), tmp_path)).about
    assert "The first document is ('<s>') '" in about
    assert "'</s>': " in about
    assert "tokens enter the loss, those in parentheses do not." in about
    about = plan_recipe(recipe(_settings(folder, "pairs.csv", prompts=True), tmp_path)).about
    assert "The first document is ('<s>') ('" in about


def test_a_long_document_is_shown_by_its_first_and_last_tokens():
    made = _tokenizer()
    ids = [made.bos_token_id, *made("the plot was bad and weak and nice é", add_special_tokens=False)["input_ids"], 3]
    message = sketch(made, ids, [False, *[True] * (len(ids) - 1)])
    assert message.startswith("('<s>') '")
    assert " … " in message
    assert message.endswith(f"'</s>': {len(ids) - 1} of {len(ids)} tokens enter the loss, those in parentheses do not")
    assert sketch(made, [9, 8], [True, True]).endswith("1 of 2 tokens enter the loss, those in parentheses do not")


@pytest.mark.parametrize("file", ["text.txt", "pairs.csv", "empty.csv"])
def test_a_student_continues_from_the_start_token(folder, file):
    has_prompts = file != "text.txt"
    generate = {"fraction": 1.0, "max_new_tokens": 5, **({} if has_prompts else {"prompt_length": 1})}
    task = task_of(
        **_settings(folder, file, prompts=has_prompts, generate=generate, student={"config": {"n_layer": 1}})
    )
    batch, student = first_batch(task, size=len(PAIRS)), task.build_student().eval()
    with torch.no_grad():
        found = task.prepare_batch(batch, student)
    begin = task.problem.processor.tokenizer.bos_token_id
    starts = found.targets["counts"].int().argmax(dim=1)
    assert (found["input_ids"][:, 0] == begin).all()
    assert (starts >= 1).all()
    assert has_prompts or (starts == 1).all()


def test_an_empty_prompt_needs_a_begin(folder):
    generate = {"fraction": 1.0, "max_new_tokens": 5}
    settings = _settings(folder, "empty.csv", prompts=True, generate=generate, student={"config": {"n_layer": 1}})
    with pytest.raises(ConfigError, match="the prompt is empty, so there is nothing for the student to continue"):
        task_of(**settings, add_bos_token=False).check()


def test_a_cache_of_texts_with_a_begin_is_none_of_texts_without(folder, tmp_path):
    cached = recipe(_settings(folder), tmp_path / "run", is_caching_logits=True)
    cache_recipe(cached, tmp_path / "cache")
    change = [f"training.teacher_cache={tmp_path / 'cache'}"]
    run_recipe(cached.with_overrides(change))
    with pytest.raises(RunError, match=r"frame: begin \[2\] -> \[\]"):
        run_recipe(cached.with_overrides([*change, "task.add_bos_token=false"]), overwrite=True)


DOCUMENTS = st.lists(st.lists(st.integers(10, 20), max_size=9), min_size=1, max_size=6)
BEGINS = st.sampled_from([[], [1], [1, 2]])


@given(DOCUMENTS, BEGINS, st.integers(4, 8), st.booleans())
def test_every_example_has_start_tokens_and_no_token_is_lost_or_counted_twice(texts, begin, length, is_packed):
    documents = [Tokens([*begin, *one, 3], [False] * len(begin) + [True] * (len(one) + 1)) for one in texts]
    found = (packed if is_packed else divided)(documents, length, begin)
    whole = [token for one in texts for token in [*one, 3]]
    read = [token for one in found for token in one.ids if token > 2]
    assert all(one.ids[: len(begin)] == begin and not any(one.counts[: len(begin)]) for one in found)
    assert all(len(begin) < len(one.ids) == len(one.counts) <= length for one in found)
    assert not begin or all(one.ids[-1] not in begin for one in found)
    lost = len(whole) - len(read)  # single tokens left over, which nothing predicts
    assert lost <= len(texts)
    if not lost:
        assert read == whole
    counted = sum(sum(one.counts[1:]) for one in found)
    assert counted >= len(read) - len(found)  # the first token of a piece that continues a text
    if begin and not is_packed and all(len(one) + len(begin) < length for one in texts):
        assert counted == len(whole)


def _halves(size, *, counts):
    return SideTokens([10] * size, [counts] * size, [1] * size)


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2)), min_size=1, max_size=8), min_size=1, max_size=4),
    st.sampled_from([([], []), ([1], [1]), ([1], []), ([], [1])]),
    st.integers(5, 9),
)
def test_both_sides_get_start_tokens_after_a_cut_with_two_tokenizers(texts, begins, length):
    """Each text is a list of common pieces: numbers of student and teacher tokens."""
    duals = []
    for text in texts:
        dual = DualTokens.empty()
        own, theirs = (SideTokens(ids, [False] * len(ids), [0] * len(ids)) for ids in begins)
        dual.extend(own, theirs, [(1, 1)] if all(begins) else [])
        for mine, other in text:
            dual.extend(_halves(mine, counts=True), _halves(other, counts=True), [(mine, other)])
        dual.extend(SideTokens([3], [True], [0]), SideTokens([3], [True], [0]), [(1, 1)])
        duals.append(dual)
    found = list(pieces(joined(duals), length, begins))
    for piece in found:
        for half, begin in zip((piece.student, piece.teacher), begins, strict=True):
            assert half.ids[: len(begin)] == begin
            assert not any(half.counts[: len(begin)])
            assert half.ids[-1] != 1
            assert len(half.ids) == len(half.counts) == len(half.sizes) <= length
        assert piece.cuts[-1] == (len(piece.student.ids), len(piece.teacher.ids))
        assert all(piece.student.ids[own] != 1 for own, _ in piece.compared)
    for place, side in enumerate(("student", "teacher")):
        read = [token for piece in found for token in getattr(piece, side).ids if token != 1]
        assert read == [token for text in texts for token in [*[10] * sum(counts[place] for counts in text), 3]]


@pytest.fixture(scope="module", params=["both", "the student", "the teacher"])
def apart(request, tmp_path_factory):
    """Models with two vocabularies, of which one or both add a start token."""
    folder = tmp_path_factory.mktemp("apart")
    (folder / "text.txt").write_text("\n\n".join(ALL_TEXTS), encoding="utf-8")
    templates = {
        side: "<s> $A" if request.param in ("both", f"the {side}") else "$A" for side in ("teacher", "student")
    }
    save_of_two(folder / "teacher", _tokenizer(templates["teacher"], ALL_TEXTS, 320))
    save_of_two(folder / "student", _tokenizer(templates["student"], HARD, 280), seed=1, n_layer=1)
    begins = {side: template.startswith("<s>") for side, template in templates.items()}
    return folder, begins


@pytest.mark.parametrize("packing", [True, False])
def test_each_side_begins_as_its_own_tokenizer_does(apart, packing):
    folder, begins = apart
    task = task_of(**_settings(folder, student=str(folder / "student"), max_length=40, packing=packing))
    batch = first_batch(task, size=6)
    makers = {side: task.problem.processor_of(side).tokenizer for side in begins}
    reads = {}
    for side, has_begin in begins.items():
        rows, labels, compared = batch[side]["input_ids"], batch[side].targets["labels"], batch[side].targets["counts"]
        begin = makers[side].bos_token_id
        assert bool((rows[:, 0] == begin).all()) == has_begin == bool((rows == begin).any())
        assert not (labels == begin).any()
        assert not (compared & (labels == -100)).any()
        reads[side] = [
            makers[side].decode(row[:place], skip_special_tokens=True)
            for row, marks in zip(rows, compared, strict=True)
            for place in marks.nonzero().flatten().tolist()
        ]
    assert reads["student"] == reads["teacher"]
    assert len(reads["student"]) > 20
    assert "For the student the first document is " in task.about()
