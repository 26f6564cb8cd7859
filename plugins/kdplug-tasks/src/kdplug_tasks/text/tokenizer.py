"""Load tokenizers, train them on the training data, and compare their vocabularies."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import kdplug
from kdplug_tasks.data.hub import offline_if_unreachable
from kdplug_tasks.models.config import check_path, not_loaded
from kdplug_tasks.models.untrusted import check_tokenizer_class, data_only
from kdplug_tasks.text.setting import TokenizerSettings

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<s>", "</s>"
_SPECIAL = (PAD, UNKNOWN, BEGIN, END)
_BYTES = 256
_LONGEST_RUN = re.compile(r"\S{1000}|\s{1000}")
"""Learning merges takes quadratic time in the length of a word, so longer runs are split before training."""


def load_tokenizer(path: str, field: str, *, is_split: bool = False) -> Any:
    """Load the tokenizer of a folder or hub name, with a padding token, without running code from the folder.

    ``is_split``: inputs will be words, so a tokenizer whose words begin with a space must add it before each.

    Raises: ``ConfigError`` if there is none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    check_path(path, field)
    try:
        with data_only(), offline_if_unreachable(path):
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
            f"{path!r}: transformers loaded it as {type(tokenizer).__name__}, which is not a tokenizer", field=field
        )
    names = tokenizer.model_input_names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise kdplug.ConfigError(f"{path!r}: its model_input_names must be a list of names, got {names!r}", field=field)
    tokenizer.model_input_names = list(dict.fromkeys(("input_ids", *names, "attention_mask")))  # every task reads these
    if tokenizer.pad_token is None:
        spare = tokenizer.eos_token or tokenizer.unk_token
        if spare is None:
            raise kdplug.ConfigError(
                f"{path!r} has no padding, end or unknown token. Set pad_token in its tokenizer_config.json",
                field=field,
            )
        tokenizer.pad_token = spare
    return tokenizer


def has_tokenizer(path: str) -> bool:
    """Return whether a folder has a tokenizer; a hub name is assumed to have one."""
    folder = Path(path)
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
    is_folder = os.path.isdir(folder)  # noqa: PTH112 - False if the name is too long
    return not is_folder or any((folder / name).is_file() for name in names)


def make_tokenizer(
    settings: TokenizerSettings, texts: Iterable[str], *, is_framed: bool, is_split: bool = False
) -> Any:
    """Train a byte-level tokenizer on texts.

    ``is_framed``: add a start and an end token around each text, and an end token between two; ``is_split``: add a
    space before each word.
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
    """Yield the text, split after every thousand characters of a word or of whitespace."""
    start = 0
    for run in _LONGEST_RUN.finditer(text):
        yield text[start : run.end()]
        start = run.end()
    yield text[start:]


def check_agreement(tokenizer: Any, other: Any, field: str) -> None:
    """Raise ``ConfigError`` if two tokenizers have different vocabularies."""
    if reason := difference(tokenizer, other):
        raise kdplug.ConfigError(
            f"the student's tokenizer has a different vocabulary from the teacher's: {reason}. Both models get the same ids, so they need the "
            "same vocabulary. Use a student with the teacher's tokenizer",
            field=field,
        )


def difference(tokenizer: Any, other: Any) -> str:
    """Describe the difference of two vocabularies, ``other``'s first; empty if they are equal."""
    mine, theirs = tokenizer.get_vocab(), other.get_vocab()
    if mine == theirs:
        return ""
    tokens = sorted(mine.keys() ^ theirs.keys()) or sorted(one for one in mine if mine[one] != theirs[one])
    token = tokens[0]
    one, two = theirs.get(token, "none"), mine.get(token, "none")
    return f"{len(theirs)} tokens and {len(mine)}; {token!r} has id {one} in the first and {two} in the second"


def classes_of(tokenizer: Any) -> int:
    """Return the highest token id plus one, which is the number of tokens if the ids have no gaps."""
    highest: int = max(tokenizer.get_vocab().values())
    return 1 + highest


def check_vocabulary(tokenizer: Any, size: int, field: str) -> None:
    """Raise ``ConfigError`` if the tokenizer has ids for which the model has no embedding."""
    if size < (needed := classes_of(tokenizer)):
        raise kdplug.ConfigError(
            f"the model has {size} embeddings (vocab_size), but the tokenizer has {needed} tokens. Use the model's own tokenizer, or a "
            f"model with at least {needed} embeddings",
            field=field,
        )
