"""Tokenizers: loaded, or made from the training data; and whether two of them agree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import kdplug
from kdplug_tasks.models.config import check_path, not_loaded
from kdplug_tasks.models.untrusted import check_tokenizer_class, data_only
from kdplug_tasks.text.setting import TokenizerSettings

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<s>", "</s>"
_SPECIAL = (PAD, UNKNOWN, BEGIN, END)
_BYTES = 256
_LONGEST_RUN = re.compile(r"\S{1000}|\s{1000}")
"""Learning merges takes time quadratic in the length of a word, so longer runs are cut for it."""


def load_tokenizer(path: str, field: str, *, is_split: bool = False) -> Any:
    """The tokenizer of a folder or hub name, with something to pad with. Code that the folder brings is not run.

    ``is_split`` says that it will be given words: one whose words begin with a space then puts that before each.

    Raises: ``ConfigError`` where there is none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    check_path(path, field)
    try:
        with data_only():
            check_tokenizer_class(path, field)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            if is_split and getattr(tokenizer, "add_prefix_space", None) is False:
                tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, add_prefix_space=True)
    except kdplug.ConfigError:
        raise
    except Exception as error:  # OSError, ValueError, and plain Exception from tokenizers
        raise not_loaded(path, field, error, "the tokenizer of ") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise kdplug.ConfigError(
            f"{path!r}: transformers made a {type(tokenizer).__name__} of it, which is no tokenizer", field=field
        )
    names = tokenizer.model_input_names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise kdplug.ConfigError(f"{path!r}: its model_input_names must be a list of names, got {names!r}", field=field)
    tokenizer.model_input_names = list(dict.fromkeys(("input_ids", *names, "attention_mask")))  # what every task reads
    if tokenizer.pad_token is None:
        spare = tokenizer.eos_token or tokenizer.unk_token
        if spare is None:
            raise kdplug.ConfigError(f"{path!r} has neither a padding nor an end token", field=field)
        tokenizer.pad_token = spare
    return tokenizer


def has_tokenizer(path: str) -> bool:
    """Whether a folder brings a tokenizer; a hub name is taken to."""
    folder = Path(path).expanduser()
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
    return not folder.is_dir() or any((folder / name).is_file() for name in names)


def make_tokenizer(
    settings: TokenizerSettings, texts: Iterable[str], *, is_framed: bool, is_split: bool = False
) -> Any:
    """A byte-level tokenizer from texts. ``is_framed`` puts a begin and an end around each text, and an end between two;
    ``is_split`` puts a space before each word that it is given.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=is_split)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab or _BYTES + len(_SPECIAL),
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator((piece for text in texts for piece in _short_runs(text)), trainer)
    if is_framed:
        places = [(token, made.token_to_id(token)) for token in (BEGIN, END)]
        made.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A {END}", pair=f"{BEGIN} $A {END} $B:1 {END}:1", special_tokens=places
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        cls_token=BEGIN,
        sep_token=END,
        model_input_names=["input_ids", "attention_mask"],
    )


def _short_runs(text: str) -> Iterator[str]:
    """The text, cut after each thousand characters of a word or of white space."""
    start = 0
    for run in _LONGEST_RUN.finditer(text):
        yield text[start : run.end()]
        start = run.end()
    yield text[start:]


def check_agreement(tokenizer: Any, other: Any, field: str) -> None:
    """Raises: ``ConfigError`` where two tokenizers give a token different ids, or one lacks it."""
    if told := difference(tokenizer, other):
        raise kdplug.ConfigError(
            f"its tokenizer has another vocabulary than the teacher's: {told}. Both models are given the same ids, so they need "
            "one vocabulary",
            field=field,
        )


def difference(tokenizer: Any, other: Any) -> str:
    """How the vocabulary of ``other`` differs from that of ``tokenizer``, which stands second; the empty string where it does not."""
    mine, theirs = tokenizer.get_vocab(), other.get_vocab()
    if mine == theirs:
        return ""
    tokens = sorted(mine.keys() ^ theirs.keys()) or sorted(one for one in mine if mine[one] != theirs[one])
    token = tokens[0]
    one, two = theirs.get(token, "none"), mine.get(token, "none")
    return f"{len(theirs)} tokens and {len(mine)}; {token!r} has id {one} in the one and {two} in the other"


def classes_of(tokenizer: Any) -> int:
    """One more than the highest id that a tokenizer gives; as many as its tokens, where its ids have no gap."""
    highest: int = max(tokenizer.get_vocab().values())
    return 1 + highest


def check_vocabulary(tokenizer: Any, size: int, field: str) -> None:
    """Raises: ``ConfigError`` where the tokenizer gives ids that a model has no embedding for."""
    if size < (needed := classes_of(tokenizer)):
        raise kdplug.ConfigError(
            f"the model has {size} embeddings and the tokenizer {needed} tokens", field=f"{field}.vocab_size"
        )
