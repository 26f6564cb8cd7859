"""The task ``causal-lm``."""

from __future__ import annotations

from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.model_task import ModelTask
from kdplug_tasks.models.factored import Heads
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.text.generation import GenerateSettings, check_generation
from kdplug_tasks.text.language import Language
from kdplug_tasks.text.reader import Form
from kdplug_tasks.text.sequence import Length
from kdplug_tasks.text.setting import TokenizerSettings


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
) -> ModelTask:
    """The next token of a text, or of a completion after its prompt.

    Columns: ``text``, or ``prompt`` and ``completion``. A plain text file will do: blank lines divide its documents. The logits
    that losses see are shifted: they stand beside the token that they are about, and a mask leaves padding and prompts out.
    Metrics: perplexity (lower is better), loss in nats per token, accuracy.

    A document begins and ends with the special tokens that the tokenizer itself puts around a text, and ends with its end token where
    it puts nothing there. What it begins with (BOS) does not enter the loss; each example begins with it, also one that goes on
    within a document. The plan shows one document.

    A student may have a vocabulary of its own: that of the tokenizer in its folder, or of ``student_tokenizer``. Each side is then
    given its own tokens of the same texts, and of their logits those are compared before which both have read the same
    characters. That takes a loss that is declared ``across_vocabularies``, and no matches. Perplexities of two vocabularies cannot
    be compared, so the metric is bits per byte of text.

    Settings: ``data``, where the rows are; ``teacher`` and ``student``, which models; ``tokenizer``, the teacher's unless it is
    given; ``student_tokenizer``, that of the student's folder unless it is given, and the same as the teacher's where there is none;
    ``max_length``, tokens in an example; ``prompts``, whether rows have a prompt and a completion, of which only the
    completion counts; ``packing``, whether rows are put one after the other into examples of full length, which is done
    unless there are prompts; ``add_bos_token``, whether each document begins with what the tokenizer puts before a text, or else its
    BOS, where nothing is given as the tokenizer itself does; ``factored``, whether models hand out the factors of their logits in place of them, so that
    the logits of a batch, or of a test batch, are never all held; ``generate``, which share of the batches the student writes
    itself, ``{fraction: 0.5, max_new_tokens: 64}``.
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
    problem = Language(tokenizer, form, student_tokenizer=student_tokenizer, sampler=sampler)
    return ModelTask(problem, data, Family(problem.auto, teacher, student, heads=Heads() if factored else None))
