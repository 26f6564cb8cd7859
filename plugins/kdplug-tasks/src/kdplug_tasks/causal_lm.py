"""The task ``causal-lm``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.model_task import ModelTask
from kdplug_tasks.models.factored import Heads
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.text.generation import GenerateSettings, check_generation
from kdplug_tasks.text.language import Language
from kdplug_tasks.text.setting import TokenizerSettings


def causal_lm(
    *,
    data: DataSettings,
    teacher: TeacherSettings,
    student: StudentSettings,
    tokenizer: TokenizerSettings | None = None,
    max_length: Annotated[int, Field(ge=2)] = 256,
    prompts: bool = False,
    packing: bool | None = None,
    factored: bool = False,
    generate: GenerateSettings | None = None,
) -> ModelTask:
    """The next token of a text, or of a completion after its prompt.

    Columns: ``text``, or ``prompt`` and ``completion``. A plain text file will do: blank lines divide its documents. Both
    models need one vocabulary. The logits that losses see are shifted: they stand beside the token that they are about, and
    a mask leaves padding and prompts out. Metrics: perplexity (lower is better), loss in nats per token, accuracy.

    Settings: ``data``, where the rows are; ``teacher`` and ``student``, which models; ``tokenizer``, the teacher's unless it is
    given; ``max_length``, tokens in an example; ``prompts``, whether rows have a prompt and a completion, of which only the
    completion counts; ``packing``, whether rows are put one after the other into examples of full length, which is done
    unless there are prompts; ``factored``, whether models hand out the factors of their logits in place of them, so that
    the logits of a batch, or of a test batch, are never all held; ``generate``, which share of the batches the student writes
    itself, ``{fraction: 0.5, max_new_tokens: 64}``.
    """
    is_packed = not prompts if packing is None else packing
    sampler = check_generation(generate, max_length, has_prompts=prompts, is_packed=is_packed)
    problem = Language(tokenizer, max_length, has_prompts=prompts, is_packed=is_packed, sampler=sampler)
    return ModelTask(problem, data, Family(problem.auto, teacher, student, heads=Heads() if factored else None))
