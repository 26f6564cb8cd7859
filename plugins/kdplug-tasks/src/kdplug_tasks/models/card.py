"""The model cards of a student, and of a teacher that the run trained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kdplug

if TYPE_CHECKING:
    from kdplug_tasks.models.family import Family
    from kdplug_tasks.problem import Problem

_TITLES = {
    "teacher": "teacher",
    "no_teacher": "the same student without distillation",
    "shuffled": "the same student with the teacher outputs of other examples",
    "distilled": "the distilled student",
}
"""The arms of a run in the order of the table."""

_OUTCOMES = {
    "BEATS": "It **BEATS** the same student without distillation",
    "LOSES": "It **LOSES** to the same student without distillation",
    "CANNOT TELL": "**CANNOT TELL** it from the same student without distillation",
}


def model_card(record: Mapping[str, Any], family: Family, problem: Problem) -> str:
    """Return a student's model card in Markdown: teacher, results, recipe and package versions.

    ``record`` is the content of ``kdplug-run.json`` with ``results``, and with ``saved_teacher`` if a trained one was saved.
    """
    saved = f" and saved to {_code(record['saved_teacher'])}" if "saved_teacher" in record else ""
    fitted = f", which was trained on the training data first{saved}" if family.teacher.train else ""
    about = f"distilled with kdplug {record['kdplug']} from {_origin(family)}{fitted}"
    return _card(
        record,
        family,
        problem,
        f"# Distilled {family.student_config.model_type} model",
        f"A student for {_task(record)}, {about}.",
        f"## Results\n\nOn the test data of the recipe.\n\n{_results(record['results'])}",
    )


def teacher_card(record: Mapping[str, Any], family: Family, problem: Problem) -> str:
    """Return the model card of a teacher that the run trained. ``record`` is the content of ``kdplug-run.json``."""
    about = f"trained with kdplug {record['kdplug']} on the training data of the recipe below, from {_origin(family)}"
    title = f"# Trained {family.teacher_config.model_type} model"
    return _card(record, family, problem, title, f"A teacher for {_task(record)}, {about}.")


def _card(record: Mapping[str, Any], family: Family, problem: Problem, title: str, about: str, *results: str) -> str:
    teacher = family.teacher.path
    front = {"library_name": "transformers", "tags": "[kdplug, knowledge-distillation]"}
    if teacher is not None and not Path(teacher).is_dir():
        front["base_model"] = json.dumps(teacher, ensure_ascii=False)
    recipe = kdplug.Recipe.from_dict(record["recipe"]).to_yaml()
    fence = _ticks(recipe, fewest=3)
    parts = [
        f"---\n{_front(front)}\n---",
        title,
        about,
        f'```python\nfrom transformers import {problem.auto}\n\nmodel = {problem.auto}.from_pretrained("…")\n```',
        *results,
        f"## Made with\n\n{_versions(record)}",
        f"## Recipe\n\n{fence}yaml\n{recipe}{fence}",
    ]
    return "\n\n".join(parts) + "\n"


def _origin(family: Family) -> str:
    if family.teacher.path is not None:
        return _code(family.teacher.path)
    return f"a {family.teacher_config.model_type} model built from scratch"


def _task(record: Mapping[str, Any]) -> str:
    return _code(record["recipe"]["task"]["name"])


def _results(results: Mapping[str, Any]) -> str:
    arms = {name: results["arms"][name] for name in _TITLES if name in results["arms"]}
    names = list(arms["distilled"]["metrics"])
    lines = [f"| model | {' | '.join(map(_cell, names))} | parameters |", f"|---|{'---|' * (len(names) + 1)}"]
    for name, arm in arms.items():
        sd = arm.get("sd") or {}
        figures = [_figure(arm["metrics"].get(metric)) + _spread(sd.get(metric)) for metric in names]
        lines.append(f"| {_TITLES[name]} | {' | '.join(figures)} | {arm['parameters']:,} |")
    better = "lower is better" if results["is_lower_better"] else "higher is better"
    steps = f"{_cell(results['metric'])}: {better}. {results['optimizer_steps']} optimizer steps."
    return "\n\n".join(["\n".join(lines), f"{steps}{_seeds(results)}", *_verdict(results)])


def _seeds(results: Mapping[str, Any]) -> str:
    seeds = results["seeds"]
    if len(seeds) < 2:
        return ""
    saved = results["saved_seed"]
    own = next(run for run in results["arms"]["distilled"]["runs"] if run["seed"] == saved)
    metric = f"{_cell(results['metric'])} {_figure(own['metrics'][results['metric']])}"
    shown = ", ".join(map(str, seeds))
    return (
        f" Mean and standard deviation over the seeds {shown}. This model is that of seed {saved}, which was the best on the "
        f"validation data: {metric} on the test data."
    )


def _verdict(results: Mapping[str, Any]) -> Iterator[str]:
    verdict = results["verdict"]
    if verdict is None:
        yield "The student was not trained without distillation for comparison, so there is no verdict."
    else:
        reason = " ".join(str(verdict["reason"]).split()).rstrip(".")
        found = f"Difference in {_cell(verdict['scale'])}: {_difference(verdict, 'distillation')}"
        yield f"{_OUTCOMES[verdict['outcome']]}: {_cell(reason)}. {found}."
    gain = results.get("example_level")
    if gain is not None:
        found = f"{_cell(gain['scale'])} {_difference(gain, 'the distilled student')}"
        yield (
            "Gain from example-level knowledge, against a student that was given the teacher outputs of other examples of the "
            f"same predicted class: {found}. This is not the verdict on distillation."
        )
    if results["teacher_worse"]:
        yield "The teacher is worse than the student that was trained without it."


def _difference(verdict: Mapping[str, Any], better: str) -> str:
    """Return the difference of a comparison and its intervals."""
    intervals = [
        f"[{low:+.3g}, {high:+.3g}] over {what}"
        for key, what in (("seed_interval", "seeds"), ("unit_interval", "test units"))
        for low, high in (verdict[key],) * (verdict[key] is not None)
    ]
    percent = f"; {verdict.get('confidence', 0.95):.0%} intervals {', '.join(intervals)}" if intervals else ""
    return f"{_signed(verdict['difference'])}, positive where {better} is better{percent}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _spread(value: float | None) -> str:
    return "" if value is None else f" ± {value:.4f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3g}"


def _code(text: str) -> str:
    """Return ``text`` on one line as inline code, even if it contains backticks."""
    line = " ".join(text.split())
    ticks = _ticks(line, fewest=1)
    return f"{ticks}{line}{ticks}" if len(ticks) == 1 else f"{ticks} {line} {ticks}"


def _ticks(text: str, *, fewest: int) -> str:
    """Return more backticks than any sequence of backticks in ``text`` has."""
    return "`" * max([fewest, *(len(run) + 1 for run in re.findall("`+", text))])


def _cell(text: str) -> str:
    """Return ``text`` for a table cell: on one line, with Markdown's characters escaped."""
    return re.sub(r"([\\|<>*`\[\]])", r"\\\1", " ".join(text.split()))


def _versions(record: Mapping[str, Any]) -> str:
    used = {entry["name"].partition(":")[0] for entry in record["entries"]}
    plugins = [f"{one['dist']} {one['version']}" for one in record["plugins"] if one["dist"] in used]
    lines = [f"kdplug {record['kdplug']}", f"torch {record['torch']}", *plugins]
    return "\n".join(f"- {line}" for line in lines)


def _front(lines: Mapping[str, str]) -> str:
    return "\n".join(f"{key}: {value}" for key, value in lines.items())
