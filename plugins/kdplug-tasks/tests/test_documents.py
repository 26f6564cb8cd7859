"""Documents of plain text files: how they are divided, what follows them, and what a plan says about them."""

from __future__ import annotations

import pytest
import torch
from task_scene import GPT2, TEXTS, first_batch, recipe, save_model, task_of, tokenizer, write_csv
from two_tokenizer_scene import settings as two_settings
from two_tokenizer_scene import write_two

import kdplug
from kdplug.recipes.preview.plan import plan_recipe
from kdplug_tasks.data.file import read_file
from kdplug_tasks.text.next_token import after_end, figures

TEXT = "  One line,\nand another.\n\n\nA second  paragraph\n" * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text of paragraphs, rows, and a teacher."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    write_csv(folder / "rows.csv", [{"text": text} for text in TEXTS * 4])
    brings = tokenizer([TEXT], is_framed=False)
    ids = {f"{one}_token_id": getattr(brings, f"{one}_token_id") for one in ("bos", "eos", "pad")}
    save_model(folder / "teacher", "AutoModelForCausalLM", GPT2, brings=brings, vocab_size=len(brings), **ids)
    return folder


def _settings(folder, file="text.txt", *, data=(), **changes):
    given = {"data": {"train": str(folder / file), "test": 0.25, **dict(data)}, "teacher": str(folder / "teacher")}
    return {"name": "causal-lm", "student": {"from_teacher": {"layers": [0]}}, "max_length": 24, **given, **changes}


def _ids(task, part):
    return [token for one in task.data(part).examples.items for token in one.ids]


def test_a_text_file_is_one_running_text_without_end_tokens(folder):
    task = task_of(**_settings(folder))
    task.check()
    made = task.problem.processor.tokenizer
    train, validation, test = (_ids(task, part) for part in ("distillation", "validation", "test"))
    texts = [made.decode(ids) for ids in (train, validation, test)]
    assert "".join(texts) == TEXT
    assert made.eos_token_id not in train + validation + test
    assert len(texts[1]) == pytest.approx(len(TEXT) / 10, abs=30)
    assert len(texts[2]) == pytest.approx(len(TEXT) / 4, abs=30)
    assert texts[0].endswith("\n")
    assert texts[1].endswith("\n")


def test_each_side_of_two_tokenizers_reads_a_running_text(tmp_path):
    folder = write_two(tmp_path)
    task = task_of(**two_settings(folder))
    task.check()
    for side in ("student", "teacher"):
        made = task.problem.processor_of(side).tokenizer
        ids = [token for one in task.data("distillation").examples.items for token in getattr(one, side).ids]
        assert made.eos_token_id not in ids
        assert (folder / "text.txt").read_text(encoding="utf-8").startswith(made.decode(ids)[:200])


@pytest.mark.parametrize(
    ("documents", "found"),
    [
        ("whole", ["one\n\n two\n--\nthree\n"]),
        ("blank_line", ["one", " two\n--\nthree"]),
        ("line", ["one", " two", "--", "three"]),
        ("\n--\n", ["one\n\n two", "three\n"]),
        ("\r\n--\r\n", ["one\n\n two", "three\n"]),
    ],
)
def test_the_text_of_a_document_is_kept(tmp_path, documents, found):
    (tmp_path / "a.txt").write_bytes(b"one\r\n\r\n two\r\n--\r\nthree\r\n")
    table = read_file(str(tmp_path / "a.txt"), None, "data.train", documents=documents)
    assert table.columns == {"text": found}


@pytest.mark.parametrize("documents", ["blank-line", "<|endoftext|>"])
def test_a_separator_that_does_not_occur_is_an_error(folder, documents):
    near = r" Did you mean 'blank_line'\?" if documents == "blank-line" else ""
    with pytest.raises(
        kdplug.ConfigError, match=rf"^documents: the separator .* does not occur in .*text\.txt\.{near} "
    ):
        task_of(**_settings(folder, documents=documents)).check()


def test_documents_of_rows_have_no_effect(folder):
    with pytest.raises(kdplug.ConfigError, match=r"^documents: divides plain text files and has no effect on rows"):
        task_of(**_settings(folder, "rows.csv", documents="line")).check()


def test_a_seed_of_the_split_has_no_effect_on_a_running_text(folder):
    with pytest.raises(
        kdplug.ConfigError,
        match=r"^data\.split_seed: has no effect on .*text\.txt, one running text, whose end is held out",
    ):
        task_of(**_settings(folder, data={"split_seed": 1})).check()


@pytest.mark.parametrize("content", ["a", "abc          "])
def test_a_running_text_that_is_too_short_to_divide_is_an_error(folder, tmp_path, content):
    (tmp_path / "short.txt").write_text(content, encoding="utf-8")
    with pytest.raises(
        kdplug.ConfigError,
        match=r"^data\.train: .* the text is too short .* to hold out a fraction of 0\.1 for validation and a .* 0\.25",
    ):
        task_of(**_settings(folder, data={"train": str(tmp_path / "short.txt")})).check()


@pytest.mark.parametrize("documents", ["whole", "blank_line"])
def test_a_plan_shows_a_decoded_stretch_of_the_training_data(folder, tmp_path, documents):
    about = plan_recipe(recipe(_settings(folder, documents=documents), tmp_path)).about
    shown = about.split("An excerpt of the training data: ")[1]
    assert ("</s>" in shown) is (documents != "whole")
    assert (r"and another.\n\n\nA second  paragraph\n" in shown) is (documents == "whole")


def _warned(folder, out, **changes):
    return [
        one
        for one in plan_recipe(recipe(_settings(folder, **changes), out)).warnings
        if one.check == "unexpected_data" and "the same text as a row" not in one.message  # the parts share texts here
    ]


def test_a_plan_warns_if_the_teacher_expects_no_text_after_an_end_token(folder, tmp_path):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "teacher")
    with torch.no_grad():  # after an end token the teacher expects another one
        model.transformer.wte.weight[model.config.eos_token_id] = 8.0 * torch.randn(16)
        model.transformer.wpe.weight.zero_()
    model.save_pretrained(tmp_path / "chat")
    tokenizer([TEXT], is_framed=False).save_pretrained(tmp_path / "chat")
    chat = {"teacher": str(tmp_path / "chat"), "documents": "blank_line"}
    (warning,) = _warned(folder, tmp_path / "out", **chat)
    assert warning.field == "task.documents"
    assert warning.message.startswith(
        "after the end token '</s>' between documents, the teacher's loss on the next token is "
    )
    assert not _warned(folder, tmp_path / "out", **{**chat, "documents": "whole"})
    assert not _warned(folder, tmp_path / "out", **chat, packing=False)
    assert not _warned(folder, tmp_path / "out", documents="blank_line")


def test_the_loss_after_an_end_token_is_that_of_the_first_token_of_each_document():
    labels = torch.tensor([[5, 3, -100, 7, 8], [3, -100, 6, 3, -100]])
    logits = torch.randn(2, 5, 9)
    first = torch.full_like(labels, -100)
    first[0, 3], first[1, 2] = 7, 6
    nats, _, count = figures(logits, first).sum(dim=0).tolist()
    total, _, items = figures(logits, labels).sum(dim=0).tolist()
    assert after_end(logits, labels, 3, 1) == pytest.approx((total / items, nats / count, 2))
    assert after_end(logits, labels, 3, 0)[2] == 0


def test_rows_of_other_formats_end_with_the_end_token(folder):
    task = task_of(**_settings(folder, "rows.csv", packing=False))
    assert all(one.ids[-1] == task.problem.processor.tokenizer.eos_token_id for one in task.data("test").examples.items)
    assert first_batch(task)["input_ids"].shape[0] == 4
