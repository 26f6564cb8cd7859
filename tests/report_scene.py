"""Write the files of completed runs with realistic data, for tests of the report: `python tests/report_scene.py FOLDER`.

Every number is drawn, none is measured.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t

ARMS = ("teacher", "no_teacher", "distilled", "shuffled")
HARMFUL = '<script>alert("x")</script>'

WORDS = [
    "what",
    "how",
    "many",
    "is",
    "the",
    "city",
    "of",
    "a",
    "name",
    "who",
    "invented",
    "first",
    "president",
    "long",
    "river",
    "does",
    "mean",
    "population",
    "born",
]
TREC = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
TAGS = [
    "ADJ",
    "ADP",
    "ADV",
    "AUX",
    "CCONJ",
    "DET",
    "INTJ",
    "NOUN",
    "NUM",
    "PART",
    "PRON",
    "PROPN",
    "PUNCT",
    "SCONJ",
    "SYM",
    "VERB",
    "X",
]

SKILL = {
    "BEATS": {"teacher": 0.93, "no_teacher": 0.83, "distilled": 0.885, "shuffled": 0.855},
    "LOSES": {"teacher": 0.80, "no_teacher": 0.88, "distilled": 0.82, "shuffled": 0.82},
    "CANNOT TELL": {"teacher": 0.92, "no_teacher": 0.868, "distilled": 0.872, "shuffled": 0.87},
}


def write_run(
    folder: Path,
    target: str = "class",
    *,
    seeds: int = 3,
    outcome: str = "BEATS",
    shuffled: bool = False,
    control: bool = True,
    tests: int = 400,
    steps: int = 600,
    classes: list[str] | None = None,
    margin: float | None = None,
) -> Path:
    """Write a completed run and return its folder."""
    draw = random.Random(f"{target} {seeds} {outcome} {tests}")
    arms = [arm for arm in ARMS if (arm != "shuffled" or shuffled) and (arm != "no_teacher" or control)]
    classes = classes or (TAGS if target == "tags" else TREC)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        arm: [_rows(draw, target, SKILL[outcome][arm], tests, classes) for _ in range(1 if arm == "teacher" else seeds)]
        for arm in arms
    }
    lines = [
        {"arm": arm, "seed": seed, "id": place, **row}
        for arm, runs in rows.items()
        for seed, run in enumerate(runs)
        for place, row in enumerate(run)
    ]
    metrics = _metrics(draw, target, rows, classes, seeds, steps, margin)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "kdplug-run.json").write_text(json.dumps(_record(target, tests, seeds), indent=2))
    for arm in arms[1:]:
        for seed in range(seeds):
            best = metrics["arms"][arm]["runs"][seed]["validation"][metrics["metric"]]
            history = _history(draw, arm, metrics, best, steps)
            place = folder / f"seed-{seed}" / arm
            place.mkdir(parents=True, exist_ok=True)
            (place / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    return folder


def _rows(draw: random.Random, target: str, skill: float, tests: int, classes: list[str]) -> list[dict]:
    example = random.Random(7)  # the same examples for every arm
    return [_row(draw, example, target, skill, classes) for _ in range(tests)]


def _row(draw: random.Random, example: random.Random, target: str, skill: float, classes: list[str]) -> dict:
    text = " ".join(example.choice(WORDS) for _ in range(example.randint(5, 14))) + " ?"
    hard = example.betavariate(1, 3)
    chance = min(0.99, max(0.02, skill + 0.12 - 0.5 * hard))

    def label() -> str:
        return classes[min(int(example.expovariate(1) * len(classes) / 3), len(classes) - 1)]

    def guess(right: str) -> tuple[str, float]:
        found = right if draw.random() < chance else draw.choice(classes)
        sure = min(0.999, max(1 / len(classes), chance + draw.gauss(0.04, 0.08) - 0.25 * (found != right)))
        return found, round(sure, 4)

    if target == "class":
        right = label()
        found, sure = guess(right)
        return {"score": float(found == right), "label": right, "prediction": found, "probability": sure, "input": text}
    if target == "tags":
        tags = [label() for _ in text.split()]
        pairs = [guess(tag) for tag in tags]
        hits = sum(found == tag for (found, _), tag in zip(pairs, tags, strict=True))
        return {
            "score": hits / len(tags),
            "weight": len(tags),
            "label": tags,
            "prediction": [found for found, _ in pairs],
            "probability": [sure for _, sure in pairs],
            "input": text,
        }
    if target == "number":
        right = round(example.uniform(0, 5), 2)
        found = round(right + draw.gauss(0, 2.5 * (1 - skill) + 0.2), 3)
        return {"score": (found - right) ** 2, "label": right, "prediction": found, "input": text}
    return {"score": 3.2 + hard + 4 * (1 - skill) + draw.gauss(0, 0.05), "weight": 64, "unit": example.randint(0, 40)}


def _mean(rows: list[dict]) -> float:
    return sum(row["score"] * row.get("weight", 1) for row in rows) / sum(row.get("weight", 1) for row in rows)


KINDS = {
    "class": ("accuracy", False, "mean", "accuracy"),
    "tags": ("accuracy", False, "mean", "accuracy"),
    "number": ("rmse", True, "root_mean", "squared rmse"),
    "tokens": ("perplexity", True, "exp_mean", "log perplexity"),
}
FINISH = {"mean": lambda value: value, "root_mean": math.sqrt, "exp_mean": math.exp}


def _metrics(
    draw: random.Random, target: str, rows: dict, classes: list[str], seeds: int, steps: int, margin: float | None
) -> dict:
    metric, is_lower, aggregate, scale = KINDS[target]
    finish, arms = FINISH[aggregate], {}
    for arm, runs in rows.items():
        values = [finish(_mean(run)) for run in runs]
        extra = {} if target in ("number", "tokens") else {"macro_f1": [value - 0.03 for value in values]}
        named = {metric: values, **extra}
        is_teacher = arm == "teacher"
        arms[arm] = {
            "metrics": {name: fmean(one) for name, one in named.items()},
            **({"sd": {name: stdev(one) for name, one in named.items()}} if len(values) > 1 else {}),
            "runs": [
                {
                    "seed": seed,
                    "metrics": {name: one[seed] for name, one in named.items()},
                    "validation": {metric: value * (1 + draw.gauss(0, 0.01))},
                    "best_step": steps - steps // 10 * draw.randint(0, 3),
                    "steps": steps,
                    "examples": steps * 32,
                    "labelled": None if is_teacher else 3200 if arm == "no_teacher" else steps * 16,
                    "seconds": draw.uniform(20, 30) * (2.5 if is_teacher else 1),
                    "peak_memory": 812_345_678 if is_teacher else 401_234_567,
                }
                for seed, value in enumerate(values)
            ],
            "parameters": 14_350_248 if is_teacher else 4_385_920,
            "bytes": 57_423_112 if is_teacher else 17_560_200,
            "seconds_per_example": 2.13e-3 if is_teacher else 6.4e-4,
            "units_per_second": 469.5 if is_teacher else 1562.5,
            **_figures(runs, target, classes),
        }
    means = {arm: one["metrics"][metric] for arm, one in arms.items()}
    sign = -1 if is_lower else 1
    found = {
        "metric": metric,
        "is_lower_better": is_lower,
        "aggregate": aggregate,
        "target": target,
        "unit": "tokens" if target == "tokens" else "examples",
        "optimizer_steps": steps,
        "seeds": list(range(seeds)),
        "controls": [arm for arm in ("no_teacher", "shuffled") if arm in rows],
        "saved_seed": seeds - 1,
        "parts": {"distillation": 4906, "baseline": 981, "validation": 546, "test": len(rows["distilled"][0])},
        "arms": arms,
        "verdict": None,
        "example_level": None,
        "gap_closed": None,
        "teacher_worse": False,
    }
    if "no_teacher" in rows:
        found["verdict"] = _verdict(rows["distilled"], rows["no_teacher"], sign, scale, margin)
        gap = sign * (means["teacher"] - means["no_teacher"])
        found["teacher_worse"] = gap < 0
        found["gap_closed"] = sign * (means["distilled"] - means["no_teacher"]) / gap if gap > 0 else None
    if "shuffled" in rows:
        found["example_level"] = _verdict(rows["distilled"], rows["shuffled"], sign, scale, margin)
    if target in ("class", "tags"):
        found["agreement"] = _agreement(rows, target)
        found["disagreements"] = 1
    return found


def _verdict(one: list, other: list, sign: int, scale: str, margin: float | None) -> dict:
    seeds, units = len(one), len(one[0])
    by_seed = [sign * (_mean(a) - _mean(b)) for a, b in zip(one, other, strict=True)]
    by_unit = [
        fmean(sign * (a[place]["score"] - b[place]["score"]) for a, b in zip(one, other, strict=True))
        for place in range(units)
    ]
    difference = fmean(by_seed)
    width = 1.96 * stdev(by_unit) / math.sqrt(units)
    found = {"difference": difference, "scale": scale, "margin": margin, "seeds": seeds, "units": units}
    found |= {"unit_interval": [difference - width, difference + width], "confidence": 0.95, "means": [0, 0]}
    if seeds < 3:
        only = f"there is only {seeds} seed" if seeds == 1 else f"there are only {seeds} seeds"
        reason = f"{only}, and a verdict needs 3 or more, because training varies from seed to seed"
        return {"outcome": "CANNOT TELL", "reason": reason, **found, "limited_by": "seeds"}
    wide = float(t.ppf(0.975, seeds - 1)) * stdev(by_seed) / math.sqrt(seeds)
    both = math.hypot(width, wide)
    excludes = abs(difference) > both
    return {
        "outcome": "CANNOT TELL" if not excludes else "BEATS" if difference > 0 else "LOSES",
        "reason": "the intervals over seeds, over test units and over both exclude 0"
        if excludes
        else "the interval over both includes 0",
        **found,
        "seed_interval": [difference - wide, difference + wide],
        "interval": [difference - both, difference + both],
        "half_width": both,
        "limited_by": "seeds" if wide > width else "test size",
        "seeds_for_margin": 6 if margin else None,
    }


def _pairs(rows: list[dict], target: str) -> list[tuple[str, str, float]]:
    if target == "class":
        return [(row["label"], row["prediction"], row["probability"]) for row in rows]
    return [one for row in rows for one in zip(row["label"], row["prediction"], row["probability"], strict=True)]


def _figures(runs: list, target: str, classes: list[str]) -> dict:
    if target not in ("class", "tags"):
        return {}
    pairs = [pair for run in runs for pair in _pairs(run, target)]
    counts = [[0] * len(classes) for _ in classes]
    for label, found, _ in pairs:
        counts[classes.index(label)][classes.index(found)] += 1
    precision, recall, f1 = [], [], []
    for place in range(len(classes)):
        hits, predicted, true = counts[place][place], sum(row[place] for row in counts), sum(counts[place])
        precision.append(hits / predicted if predicted else None)
        recall.append(hits / true if true else None)
        f1.append(2 * hits / (predicted + true) if predicted + true else None)
    bins = []
    for place in range(15):
        inside = [(sure, label == found) for label, found, sure in pairs if place / 15 < sure <= (place + 1) / 15]
        if inside:
            sures, hits = zip(*inside, strict=True)
            bins.append({"confidence": fmean(sures), "accuracy": fmean(hits), "count": len(inside)})
    error = sum(one["count"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / len(pairs)
    support = [sum(row) // len(runs) for row in counts]
    return {
        "per_class": {"classes": classes, "precision": precision, "recall": recall, "f1": f1, "support": support},
        "confusion": {"classes": classes, "counts": counts},
        "calibration": {"error": error, "bins": bins},
    }


def _agreement(rows: dict, target: str) -> dict:
    found = {True: [], False: []}
    for run in rows["distilled"]:
        for (label, teacher, _), (_, student, _) in zip(
            _pairs(rows["teacher"][0], target), _pairs(run, target), strict=True
        ):
            found[teacher == label].append(teacher == student)
    return {f"teacher_{name}": fmean(found[name == "right"] or [0.0]) for name in ("right", "wrong")}


def _history(draw: random.Random, arm: str, metrics: dict, best: float, steps: int) -> list[dict]:
    lines, start = [], best * 2.4 if metrics["is_lower_better"] else best * 0.35
    terms = {"hard_label_loss": (1.9, 0.25)}
    if arm != "no_teacher":
        terms |= {"kd_loss": (2.6, 0.4), "hidden_mse_3_to_11": (0.4, 0.02)}
    for step in range(1, steps + 1):
        done = step / steps
        values = {
            name: (low + (high - low) * math.exp(-5 * done)) * math.exp(draw.gauss(0, 0.12))
            for name, (high, low) in terms.items()
        }
        weights = {"hard_label_loss": 0.5, "kd_loss": 1.0, "hidden_mse_3_to_11": 10 * (1 - done)}
        lines.append({"step": step, "terms": values, "weights": {name: weights[name] for name in values}})
        if step % (steps // 10) == 0:
            value = best + (start - best) * math.exp(-6 * done) + draw.gauss(0, 0.004) * abs(best)
            lines.append({"step": step, "validation": {metrics["metric"]: value}})
    return lines


def _record(target: str, tests: int, seeds: int) -> dict:
    task = {"class": "text-classification", "tags": "token-classification", "number": "text-classification"}
    fingerprint = {"shown_as": "test.csv", "rows": tests, "columns": {"text": "121de809", "label": "1eebdaff"}}
    return {
        "kdplug": "0.1.0",
        "python": "3.11.7",
        "torch": "2.13.0+cpu",
        "plugins": [
            {"dist": "kdplug-logits", "version": "0.1.0", "editable": True, "commit": None, "sha256": "3458494da54b28"},
            {"dist": "kdplug-tasks", "version": "0.1.0", "editable": False, "commit": "6689935abc", "sha256": "deaa"},
        ],
        "seed": 0,
        "recipe": {
            "task": {"name": f"kdplug-tasks:{task.get(target, 'causal-lm')}", "data": {"train": "train.csv"}},
            "distillation": {
                "temperature": 4.0,
                "terms": [{"name": "kd_loss", "loss": {"name": "kdplug-logits:kl", "t2": True}, "weight": 1.0}],
                "hard_label_weight": 0.5,
            },
            "training": {"lr": 5e-4, "batch_size": 32, "num_epochs": 4, "evaluations": 10},
            "seeds": seeds,
        },
        "config_sha256": "9cd309751c9345c2c23a737bb61d5c9b858d035c8b7b873ff1d48e20261ee41f",
        "data": {
            "distillation": {"kind": "Identified", "examples": 4906, "fingerprint": {"rows": 4906, "examples": "bcbc"}},
            "validation": {"kind": "Identified", "examples": 546, "fingerprint": {"rows": 546, "examples": "aa01"}},
            "test": {"kind": "Identified", "examples": tests, "fingerprint": fingerprint},
        },
    }


SCENES = {
    "beats": {"shuffled": True, "margin": 0.01, "tests": 1200},
    "loses": {"target": "tags", "outcome": "LOSES", "tests": 400},
    "cannot-tell": {"outcome": "CANNOT TELL", "seeds": 1},
    "number": {"target": "number", "tests": 250},
    "tokens": {"target": "tokens", "shuffled": True, "steps": 5000},
    "many-classes": {"classes": [f"intent number {place}" for place in range(60)], "tests": 900},
    "no-control": {"control": False},
    "harmful": {"classes": [HARMFUL, "'\"><img src=http://example.com/x.png>", "\u202egnol", "plain"]},
}


if __name__ == "__main__":
    from kdplug.report.page.write import write_comparison, write_report

    out = Path(sys.argv[1])
    for name, scene in SCENES.items():
        print(write_report(write_run(out / name, **scene)))
    print(write_comparison([out / "beats", out / "cannot-tell", out / "loses"], out / "comparison.html"))
