"""Facts about config keys are declared at their fields, and every reader takes them from there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from kdplug.config.distillation import DistillationConfig, IntermediateMatch
from kdplug.config.key import KeyFacts, keys_that_need, not_identity, places, written_default
from kdplug.config.layer_map import LayerMap
from kdplug.config.recipe import Recipe, RecipeTraining
from kdplug.config.requirement import PluginsConfig
from kdplug.config.schema.build import no_entry, schema_of
from kdplug.config.student import StudentConfig
from kdplug.config.term import TermConfig
from kdplug.config.training import TrainingConfig

ROOT = Path(__file__).parents[2]
MODELS = (
    Recipe,
    RecipeTraining,
    TrainingConfig,
    DistillationConfig,
    TermConfig,
    IntermediateMatch,
    LayerMap,
    StudentConfig,
    PluginsConfig,
)
FIELDS = [(model, key, field) for model in MODELS for key, field in model.model_fields.items()]
NAMES = [f"{model.__name__}.{key}" for model, key, _ in FIELDS]


@pytest.mark.parametrize(("model", "key", "field"), FIELDS, ids=NAMES)
def test_every_key_has_a_description_of_one_line(model, key, field):
    assert field.description
    assert field.description == " ".join(field.description.split())
    assert not field.description.endswith(".")


def _schema(model):
    if model is TrainingConfig:
        return schema_of("training", no_entry).data
    data = schema_of("recipe", no_entry).data
    return data if model is Recipe else data["definitions"][model.__name__]


@pytest.mark.parametrize("model", MODELS)
def test_the_schema_describes_each_key_as_its_field_does(model):
    properties = _schema(model)["properties"]
    found = {key: properties[key]["description"] for key in properties if key != "fp16"}
    assert found == {key: field.description for key, field in model.model_fields.items()}


@pytest.mark.parametrize("model", [model for model in MODELS if model is not PluginsConfig])
def test_the_reference_describes_each_key_as_its_field_does(model):
    page = (ROOT / "docs/reference/config.md").read_text(encoding="utf-8")
    table = page.split(f"<!-- generated: {model.__name__} -->")[1].split("<!-- end")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert {row[0].strip("`"): row[-1] for row in rows} == {
        key: field.description for key, field in model.model_fields.items()
    }
    free = re.search(r"^Not compared when a run is resumed: (.*)\.$", table, re.MULTILINE)
    assert tuple(free[1].replace("`", "").split(", ") if free else ()) == not_identity(model)


def test_what_a_resumed_run_may_change():
    loop = {
        "ckpt_frequency",
        "ckpt_epoch_frequency",
        "ckpt_steps",
        "keep_last",
        "log_dir",
        "trackers",
        "device",
        "logging_steps",
        "shard_teacher",
        "teacher_cache",
    }
    assert set(not_identity(TrainingConfig)) == {*loop, "output_dir"}
    assert set(not_identity(RecipeTraining)) == {*loop, "eval_batch_size"}
    assert not_identity(Recipe) == ("output_dir", "seeds", "controls", "margin", "evaluators")
    assert [not_identity(model) for model in (DistillationConfig, IntermediateMatch, LayerMap)] == [(), (), ()]


def test_what_has_no_effect_without_caching():
    cached = ("teacher_cache", "teacher_cache_dtype", "teacher_cache_codec")
    assert keys_that_need(TrainingConfig, "is_caching_logits") == cached


@pytest.mark.parametrize("model", MODELS)
def test_a_key_that_another_one_needs_exists(model):
    marks = [mark for field in model.model_fields.values() for mark in field.metadata if isinstance(mark, KeyFacts)]
    assert {mark.needs for mark in marks} - {""} <= {key for _, key, _ in FIELDS}


@pytest.mark.parametrize("model", MODELS)
def test_every_field_of_a_component_says_which(model):
    held = {
        key
        for key, field in model.model_fields.items()
        if re.search(r"\b(ComponentSpec|ProjectionSpec)\b", str(field.annotation))
    }
    assert set(places(model)) == held


@pytest.mark.parametrize("model", MODELS)
def test_the_schema_writes_each_default_as_a_config_does(model):
    properties = _schema(model)["properties"]
    for key, field in model.model_fields.items():
        if key in ("layer_map", "plugins", "student") or field.is_required():
            continue
        default = written_default(field)
        plain = list(default) if isinstance(default, tuple) else default
        depends_on_the_task = (model, key) == (Recipe, "output_dir")
        assert properties[key].get("default", "absent") == ("absent" if depends_on_the_task else plain)


GENERIC = {
    "name",
    "loss",
    "weight",
    "feature",
    "teacher",
    "task",
    "plugins",
    "training",
    "distillation",
    "embeddings",
    "student",
    "hooks",
}
KEYS = {key for _, key, _ in FIELDS} - GENERIC
NO_FACTS = {
    "kdplug/cli/scaffold.py": "kinds of entry that plugins new writes",
    "kdplug/integrations/textbrewer/configurations.py": "keys of TextBrewer's own dict of a match",
    "kdplug/recipes/preview/run_plan.py": "attributes of a plan",
    "kdplug/cli/run.py": "options of a command",
    "kdplug/recipes/arm.py": "values that a run of an arm sets",
    "kdplug/recipes/result.py": "keys of metrics.json",
    "kdplug/recipes/stages/student.py": "values that a stage without a teacher cache sets",
}


def _listed(file: Path) -> set[str]:
    """Return the config keys that are written together, three or more, in a literal list, tuple, set or dict."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", ())
        keys = {part.value for part in parts if isinstance(part, ast.Constant)} & KEYS
        found |= keys if len(keys) >= 3 else set()
    return found


def test_no_module_lists_config_keys_by_hand():
    files = [file for part in ("kdplug", "docs") for file in sorted((ROOT / part).rglob("*.py"))]
    found = {file.relative_to(ROOT).as_posix(): keys for file in files if (keys := _listed(file))}
    assert set(found) <= set(NO_FACTS), (
        "declare the fact at the field and compute the list, as kdplug/config/key.py does"
    )
