"""Words and tags of CoNLL files: selection of columns, and lines without a word."""

from __future__ import annotations

import pytest
from task_scene import BERT, TRAINED, task_of

from kdplug import ConfigError
from kdplug_tasks.data.file import read_file
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.data.source import Columns, read_source

COLUMNS = Columns(("tokens",), ("tags",))
CONLLU = """\
# newdoc
# sent_id = 1
# text = Vámonos al mar #
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
1\tVamos\tir\tVERB\tV\tMood=Imp\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\tP\t_\t1\tobj\t_\tA=b
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\tS\t_\t5\tcase\t_\t_
4\tel\tel\tDET\tD\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\tN\tNumber=Sing\t1\tobl\t_\t_
5.1\tallá\tallá\tADV\tR\t_\t_\t_\t1:advmod\t_
6\t#\t#\tSYM\tX\t_\t1\tpunct\t_\t_

# sent_id = 2
1\t10 000\t10 000\tNUM\tZ\t_\t0\troot\t_\t_
2\t_\t_\tPUNCT\tF\t_\t1\tpunct\t_\t_
"""
WORDS = [["Vamos", "nos", "a", "el", "mar", "#"], ["10 000", "_"]]
UPOS = [["VERB", "PRON", "ADP", "DET", "NOUN", "SYM"], ["NUM", "PUNCT"]]


def _table(tmp_path, text, name="a.conllu", columns=None, **changes):
    (tmp_path / name).write_bytes(text.encode())
    parts = dict.fromkeys(("train", "validation", "test"), str(tmp_path / name))
    settings = DataSettings(**parts, columns=columns or {}, **changes)
    return read_source(settings, COLUMNS).train


def _columns(table):
    return list(table.columns["tokens"]), list(table.columns["tags"])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_conllu_is_forms_and_upos_without_ranges_and_empty_nodes(tmp_path, end):
    assert _columns(_table(tmp_path, CONLLU.replace("\n", end))) == (WORDS, UPOS)


@pytest.mark.parametrize(
    ("columns", "tokens", "tags"),
    [
        ({"tokens": "form", "tags": "xpos"}, WORDS[1], ["Z", "F"]),
        ({"tags": "deprel"}, WORDS[1], ["root", "punct"]),
        ({"tokens": "lemma"}, ["10 000", "_"], UPOS[1]),
        ({"tags": "feats"}, WORDS[1], ["_", "_"]),
    ],
)
def test_columns_of_conllu_are_chosen_by_name(tmp_path, columns, tokens, tags):
    found = _columns(_table(tmp_path, CONLLU, columns=columns))
    assert (found[0][1], found[1][1]) == (tokens, tags)


def test_conllu_may_have_any_name(tmp_path):
    assert _columns(_table(tmp_path, CONLLU, "a.txt", format="conllu")) == (WORDS, UPOS)


def test_a_sentence_without_tags_has_none_and_may_be_distilled_on(tmp_path):
    bare = CONLLU.replace("NUM", "_").replace("PUNCT", "_")
    (tmp_path / "bare.conllu").write_text(bare)
    (tmp_path / "a.conllu").write_text(CONLLU)
    whole, unlabelled = str(tmp_path / "a.conllu"), str(tmp_path / "bare.conllu")
    data = {"train": whole, "test": whole, "distillation": unlabelled}
    task = task_of(
        name="token-classification", data=data, teacher={"config": BERT, **TRAINED}, student={"config": BERT},
        tokenizer="bytes", max_length=40,
    )  # fmt: skip
    assert [set(one.labels) == {-100} for one in task.data("distillation").examples.items] == [False, True]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\tword\tNOUN", r"line 1 must have 10 non-empty columns, .*, got 3\. .*write data\.format: conll and select .* data\.columns: \{tokens"),
        ("1 a a NOUN N _ 0 root _ _", "line 1 must have 10 non-empty columns, separated by single tabs, got 1"),
        ("1\ta\ta\t\tN\t_\t0\troot\t_\t_", "line 1 must have 10 non-empty columns, separated by single tabs, got 9"),
        ("2\ta\ta\tNOUN\tN\t_\t0\troot\t_\t_", "line 1 has the ID '2', but the next ID of this sentence must be 1"),
        ("1a\ta\ta\tNOUN\tN\t_\t0\troot\t_\t_", "line 1 has the ID '1a'"),
        ("1\ta\ta\tNOUN\tN\t_\t0\troot\t_\t_\n2\tb\tb\t_\tN\t_\t0\troot\t_\t_", "line 2: the word 'b' has no UPOS, but other words"),
        ("1\ta\ta\tNOUN\tN\t_\t0\troot\t_\t_\n1\ta\ta\tNOUN\tN\t_\t0\troot\t_\t_", "line 2 has the ID '1', but the next ID of this sentence must be 2"),
    ],
)  # fmt: skip
def test_invalid_conllu_is_an_error(tmp_path, line, message):
    (tmp_path / "a.conllu").write_text(line + "\n")
    with pytest.raises(ConfigError, match=rf"^data\.train: .*a\.conllu: {message}"):
        read_file(str(tmp_path / "a.conllu"), None, "data.train")


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"tags": "xpso"}, r"no column 'xpso'\. Did you mean 'xpos'\? CoNLL-U has id, form"), ({"tags": 4}, "no column '4'")],
)  # fmt: skip
def test_an_unknown_column_of_conllu_is_an_error(tmp_path, columns, message):
    with pytest.raises(ConfigError, match=message):
        _table(tmp_path, CONLLU, columns=columns)


CONLL = "-DOCSTART- -X- -X- O\n\n# a comment\nAnna NNP I-NP B-PER\n# NN I-NP O\n1\u00a0000\u2028x CD I-NP O\n\nBob NNP I-NP B-PER\n"


def test_other_files_are_first_and_last_column_or_those_of_a_number(tmp_path):
    words = [["Anna", "#", "1\u00a0000\u2028x"], ["Bob"]]
    assert _columns(_table(tmp_path, CONLL, "a.conll")) == (words, [["B-PER", "O", "O"], ["B-PER"]])
    second = [["NNP", "NN", "CD"], ["NNP"]]
    assert _columns(_table(tmp_path, CONLL, "a.conll", {"tags": 2})) == (words, second)
    assert _columns(_table(tmp_path, CONLL, "a.bio", {"tokens": "2", "tags": 4}))[0] == second


def test_tabs_divide_where_there_are_any(tmp_path):
    text = "New York\tB-LOC\n#\tO\n"
    assert _columns(_table(tmp_path, text, "a.iob")) == ([["New York", "#"]], [["B-LOC", "O"]])


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (
            "a X O\nb O\n",
            {},
            "line 2 has 2 columns and line 1 has 3, so it is not clear which columns contain words and tags",
        ),
        ("a X O\nb O\n", {"tags": 3}, "line 2: column 3 is missing"),
        ("a\tO\nb\t\n", {}, "line 2: column 2 is empty"),
        ("Anna\n", {}, "line 1 has the word 'Anna' but no tag"),
        ("a O\n", {"tags": "upos"}, "there is no column 'upos': the columns of a CoNLL file are numbered from 1"),
        ("a O\n", {"tags": "0"}, "there is no column '0'"),
        (
            "1 a _ N\n2 b _ V\n\n1 c _ N\n",
            {},
            "the first column contains the numbers of the words in their sentence, not the words. For CoNLL-U",
        ),
        ("1-2 ab _ _\n1 a _ N\n2 b _ V\n", {"tags": 4}, "the first column contains the numbers of the words"),
    ],
)
def test_ambiguous_files_are_rejected(tmp_path, text, columns, message):
    with pytest.raises(ConfigError, match=message):
        _table(tmp_path, text, "a.conll", columns)


def test_lines_of_several_lengths_are_read_where_both_columns_have_a_number(tmp_path):
    found = _columns(_table(tmp_path, "1 a N\n2 b V more\n", "a.conll", {"tokens": 2, "tags": 3}))
    assert found == ([["a", "b"]], [["N", "V"]])


def test_words_may_be_numbers(tmp_path):
    assert _columns(_table(tmp_path, "1 O\n\n2 O\n3 X\n", "a.conll"))[0] == [["1"], ["2", "3"]]


@pytest.mark.parametrize("number", [0, -1, True, 1.5])
def test_a_column_has_a_name_or_a_number_from_one(number):
    from kdplug import tasks

    settings = {"data": {"train": "a.conll", "test": 0.5, "columns": {"tags": number}}, "teacher": "x", "student": "y"}
    with pytest.raises(ConfigError, match=r"^data\.columns\.tags: must be"):
        tasks.build({"name": "token-classification", **settings})
