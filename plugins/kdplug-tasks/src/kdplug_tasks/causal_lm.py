"""The task ``causal-lm``: predict the next token."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

import kdplug
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.data.table import WHOLE
from kdplug_tasks.guess import EXAMPLE, guess_for
from kdplug_tasks.model_task import ModelTask
from kdplug_tasks.models.factored import Heads
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.text.generation import GenerateSettings, check_generation
from kdplug_tasks.text.language import Language
from kdplug_tasks.text.reader import Form
from kdplug_tasks.text.sequence import Length
from kdplug_tasks.text.setting import TokenizerSettings


@kdplug.new_recipe(
    distillation={"temperature": 1.0},
    training={"warmup": 0.1, "max_grad_norm": 1.0},
    task={**EXAMPLE, "data": {"train": "train.txt", "validation": 0.1, "test": "test.txt"}},
    guess=guess_for("causal-lm", max_length=256),
)
def causal_lm(
    *,
    data: DataSettings,
    teacher: TeacherSettings,
    student: StudentSettings,
    tokenizer: TokenizerSettings | None = None,
    student_tokenizer: TokenizerSettings | None = None,
    max_length: Length = 256,
    prompts: bool = False,
    packing: bool | None = None,
    add_bos_token: bool | None = None,
    factored: bool = False,
    generate: GenerateSettings | None = None,
    documents: Annotated[str, Field(min_length=1)] = WHOLE,
) -> ModelTask:
    """Predict the next token of a text, or of a completion after its prompt.

    Columns: ``text``, or ``prompt`` and ``completion``. A plain text file also works; it is one running text unless
    ``documents`` is set. The logits that losses receive are shifted, so that each is aligned with the token it predicts; a mask
    excludes padding and prompts. Metrics: perplexity (lower is better), loss in nats per token, accuracy.

    Each document gets the special tokens that the tokenizer adds to a text. If the tokenizer adds none at the end, the
    end token (EOS) is appended. A running text gets no end token. The start tokens (BOS) do not enter the loss. Every
    example begins with them, including one that continues a document. ``kdplug plan`` shows the tokens of one document.

    The student may have a different vocabulary, from the tokenizer in its folder or from ``student_tokenizer``. Teacher
    and student then tokenize the same texts separately, and logits are compared at the positions up to which both cover
    the same characters. This needs a loss that is declared ``across_vocabularies``, and excludes matches. Perplexities
    over different vocabularies are not comparable, so the metric is bits per byte of text.

    With ``generate``, adaptors return the extras ``from_student``, whether the student wrote a row, and ``sampled``, the
    tokens that it sampled (-100 elsewhere); the latter only if the sampling settings keep the student's distribution.

    Settings: ``data``, the files or dataset with the texts; ``teacher``, the teacher model; ``student``, the student model;
    ``tokenizer``, the teacher's tokenizer, by default the one in its folder; ``student_tokenizer``, by default the one in the
    student's folder, or the teacher's if that folder has none;
    ``max_length``, maximum tokens in an example; ``prompts``, whether rows have a prompt and a completion, in which
    case only the completion counts; ``packing``, whether rows are concatenated and cut into examples of full length, by
    default true unless there are prompts; ``add_bos_token``, whether each document begins with the tokens that the
    tokenizer adds before a text, or with its BOS if it adds none, by default as the tokenizer does; ``factored``,
    whether models return the factors of their logits instead of the logits, so that the logits of a training or test
    batch are never held in memory at once; ``generate``, the share of batches that the student generates itself,
    ``{fraction: 0.5, max_new_tokens: 64}``; ``documents``, how plain text files are divided: ``whole`` (a file is one
    running text, blank lines included, without end tokens), ``blank_line`` (blank lines separate documents), ``line``
    (each line is a document), or any other text, which is then the separator. The text of a document is kept as it is.
    The default is ``whole``, as in the examples of transformers and the usual perplexity of a text file, and because an
    end token between paragraphs is wrong for most teachers: the end token of a chat model ends a turn, and no text
    follows it.
    """
    is_packed = not prompts if packing is None else packing
    sampler = check_generation(generate, max_length, has_prompts=prompts, is_packed=is_packed)
    form = Form(
        max_length,
        has_prompts=prompts,
        is_packed=is_packed,
        needs_prompts=sampler is not None,
        add_bos_token=add_bos_token,
    )
    problem = Language(tokenizer, form, student_tokenizer=student_tokenizer, sampler=sampler, documents=documents)
    return ModelTask(problem, data, Family(problem.auto, teacher, student, heads=Heads() if factored else None))
