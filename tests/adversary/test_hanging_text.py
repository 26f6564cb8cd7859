"""Texts that would take minutes, gigabytes or the whole stack. Each is one clear error at once."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kdplug import Recipe, tasks
from kdplug.config.distillation import DistillationConfig
from kdplug.config.layer import LayerPath
from kdplug.config.model import freeze
from kdplug.config.text import json_document, yaml_document
from kdplug.engine.cache.folder import CacheFolder
from kdplug.engine.checkpoint.archive import read_archive
from kdplug.engine.observe.tracking import journal
from kdplug.errors import ConfigError, KdplugError, did_you_mean
from kdplug.host.lock import read_lock
from kdplug.recipes.cache_provenance import read_provenance
from kdplug.recipes.history import _lines
from kdplug.recipes.output_folder import begun_record

SECONDS = 20
"""Of processor time, a generous limit: each of these takes less than five."""
ROOM = 256 << 20

RECIPE = {
    "task": {"name": "digits"},
    "distillation": {"intermediate_matches": [{"layer_T": 1, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse"}]},
    "training": {"num_epochs": 1},
}


@contextmanager
def limited() -> Iterator[None]:
    """Run the block with ``ROOM`` more memory than is held now, for ``SECONDS`` of processor time at most."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, _late)
    resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, before[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGPROF, handler)


def _late(*_: object) -> None:
    raise TimeoutError(f"it took more than {SECONDS} seconds")


def refused(call: Callable[[], Any], kind: type[Exception] = KdplugError) -> str:
    """What ``call`` raises, within the limits; a message has to be one that a person can read."""
    with limited(), pytest.raises(kind) as caught:
        call()
    assert len(str(caught.value)) < 3000
    return str(caught.value)


def bomb(levels: int = 9) -> str:
    """A flow mapping whose last key stands for 10 to the power of ``levels`` values, in about 500 bytes."""
    lines = ["k0: &k0 [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]"]
    for level in range(1, levels):
        repeated = ", ".join([f"*k{level - 1}"] * 10)
        lines.append(f"k{level}: &k{level} [{repeated}]")
    return "{" + ", ".join(lines) + "}"


def merge_bomb(levels: int = 9) -> str:
    """The same by merge keys."""
    lines = ["k0: &k0 {a: 1}"]
    for level in range(1, levels):
        repeated = ", ".join([f"*k{level - 1}"] * 10)
        lines.append(f"k{level}: &k{level} {{<<: [{repeated}]}}")
    return "{" + ", ".join(lines) + "}"


def chain(length: int) -> str:
    """Aliases of which each is one level deeper than the one before."""
    return "k0: &k0 [1]\n" + "".join(f"k{place + 1}: &k{place + 1} [*k{place}]\n" for place in range(length))


TOO_MUCH = {
    "aliases of aliases": (bomb(), "more than 25,000 values, counting each repetition by an alias"),
    "merges of merges": (merge_bomb(), "more than 25,000 values, counting each repetition by an alias"),
    "an alias of what it is in": ("{a: &a [*a]}", r"the alias \*a is inside the value that it repeats"),
    "a merge of what it is in": ("{a: &a {<<: *a}}", r"the alias \*a is inside the value that it repeats"),
    "aliases that nest": (chain(900), "nested too deeply: more than 64 levels"),
    "flow lists": ("a: " + "[" * 9_000 + "]" * 9_000, "nested too deeply: more than 64 levels"),
    "flow lists that never end": ("[" * 200_000, "nested too deeply: more than 64 levels"),
    "block mappings": ("".join(" " * depth + "a:\n" for depth in range(400)), "nested too deeply"),
    "block lists": ("a:\n  " + "- " * 5_000 + "x", "nested too deeply"),
    "complex keys": ("? " * 5_000, "nested too deeply"),
    "many values": ("a: [" + "1," * 60_000 + "]", "more than 25,000 values"),
    "a long text": ("a: " + "x" * 600_000, "holds more than 524,288 characters, the maximum"),
    "a long number": ("a: " + "9" * 5_000, "holds a number of 5,000 characters; the maximum is 100"),
    "a long hexadecimal number": ("a: 0x" + "f" * 9_000, "holds a number of 9,002 characters"),
    "a number to the base of 60": ("%YAML 1.1\n---\na: 1" + ":59" * 90_000, "holds a number of 270,001 characters"),
    "a long fraction": ("a: 0." + "3" * 400_000, "holds a number of 400,002 characters"),
    "a long key": ("? " + "k" * 90_000 + "\n: 1", "the key 'kkkkkkkkkkkkkkkkkkkk'… has 90,000 characters"),
}


@pytest.mark.attack("YAML that is small to write and large to read")
@pytest.mark.parametrize("name", TOO_MUCH)
def test_yaml_beyond_the_limits_is_an_error_with_its_line(name: str) -> None:
    text, says = TOO_MUCH[name]
    message = refused(lambda: yaml_document(text, "a.yaml"), ConfigError)
    assert message.startswith("a.yaml")
    assert_says(message, says)


def assert_says(message: str, pattern: str) -> None:
    """Hold a message to a regular expression."""
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(message)


@pytest.mark.attack("YAML that is small to write and large to read")
def test_five_hundred_bytes_below_task_take_no_gigabyte(tmp_path: Path) -> None:
    text = f"task: {{name: digits, spare: {bomb()}}}\ndistillation: {{}}\ntraining: {{num_epochs: 1}}\n"
    assert len(text) < 700
    (tmp_path / "recipe.yaml").write_text(text)
    assert_says(refused(lambda: Recipe.from_file(tmp_path / "recipe.yaml")), r"^recipe\.yaml, line 1, .*25,000 values")


@pytest.mark.attack("YAML that is small to write and large to read")
def test_aliases_and_merges_of_a_reasonable_size_are_read() -> None:
    text = "a: &a {b: 1, c: [2, 3]}\nd: *a\ne: {<<: *a, b: 4}\nf: [*a, *a]\n"
    one = {"b": 1, "c": [2, 3]}
    assert yaml_document(text).data == {"a": one, "d": one, "e": {"b": 4, "c": [2, 3]}, "f": [one, one]}


JSON = {
    "lists": ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deeply: more than 64 levels"),
    "lists that the parser takes": ('{"a": ' + "[" * 300 + "]" * 300 + "}", "nested too deeply: more than 64 levels"),
    "mappings": ('{"a": ' * 500 + "1" + "}" * 500, "nested too deeply"),
    "many values": ('{"a": [' + "1," * 99_999 + "1]}", "holds more than 25,000 values"),
    "a long text": (json.dumps({"a": "x" * 600_000}), "holds more than 524,288 characters"),
    "a long number": ('{"a": ' + "9" * 5_000 + "}", "holds a number of 5,000 characters; the maximum is 100"),
    "a long fraction": ('{"a": 0.' + "3" * 5_000 + "}", "holds a number of 5,002 characters"),
    "a long key": (json.dumps({"k" * 9_000: 1}), "the key 'k{20}'… has 9,000 characters"),
}
READERS = {
    "json_document": json_document,
    "from_json": DistillationConfig.from_json,
    "pydantic's": DistillationConfig.model_validate_json,
}


@pytest.mark.attack("JSON that is nested, long or many")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", JSON)
def test_json_beyond_the_limits_is_an_error(name: str, reader: str) -> None:
    text, says = JSON[name]
    assert_says(refused(lambda: READERS[reader](text), ConfigError), says)


@pytest.mark.attack("thousands of unknown keys or wrong values")
@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize("count", [12_000, 60_000])
def test_thousands_of_unknown_keys_are_one_error_of_a_few_lines(tmp_path: Path, suffix: str, count: int) -> None:
    keys = {f"unknown_key_{place}": 1 for place in range(count)}
    file = tmp_path / f"recipe.{suffix}"
    text = "".join(f"{key}: 1\n" for key in keys) if suffix == "yaml" else json.dumps(keys)
    file.write_text(text)
    message = refused(lambda: Recipe.from_file(file))
    if count == 12_000:
        assert message.startswith(f"{count + 3} problems, the first 10 of which are:\n    task: is required")
        assert message.count("\n") == 10


@pytest.mark.attack("thousands of unknown keys or wrong values")
def test_thousands_of_unknown_keys_from_python_are_one_error_too() -> None:
    keys = {f"tempereture{place}": 1 for place in range(60_000)}
    message = refused(lambda: DistillationConfig.from_dict(keys))
    assert message.startswith("60000 problems, the first 10 of which are:")
    assert message.count("Did you mean") == 10


@pytest.mark.attack("thousands of unknown keys or wrong values")
def test_thousands_of_wrong_matches_are_one_error_of_a_few_lines(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("intermediate_matches:\n" + "- {loss: hiden_mse, wieght: 1}\n" * 3000)
    message = refused(lambda: DistillationConfig.from_file(tmp_path / "a.yaml"))
    assert_says(message, r"^\d+ problems, the first 10 of which are:")


@pytest.mark.attack("thousands of unknown keys or wrong values")
def test_a_name_is_compared_with_a_thousand_others_at_most() -> None:
    with limited():
        assert did_you_mean("x" * 80, (f"{'x' * 80}{place}" for place in range(3_000_000)))
        assert did_you_mean("x" * 1_000_000, ["x" * 1_000_000]) == ""


@pytest.mark.attack("a value from Python that is large, deep or holds itself")
@pytest.mark.parametrize("where", ["task", "kd_loss_type"])
def test_shared_lists_from_python_are_counted_for_each_place(where: str) -> None:
    value: Any = [1]
    for _ in range(30):
        value = [value, value]
    spec = {"name": "digits" if where == "task" else "ce", "spare": value}
    data = {**RECIPE, "task": spec} if where == "task" else {"kd_loss_type": spec}
    make = Recipe if where == "task" else DistillationConfig
    assert_says(refused(lambda: make.from_dict(data)), f"^{where}: holds more than 25,000 values")


@pytest.mark.attack("a value from Python that is large, deep or holds itself")
def test_deep_lists_and_those_that_hold_themselves_are_refused() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    round_about: dict[str, Any] = {}
    round_about["a"] = [round_about, round_about]
    for value in (deep, round_about):
        refused(lambda value=value: freeze(value), ConfigError)
    while isinstance(deep, list):  # taking it down at once would recurse
        deep = deep.pop()


@pytest.mark.attack("a file that is far too long")
def test_no_more_of_a_file_is_read_than_may_be(tmp_path: Path) -> None:
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(1 << 40)  # a hole, which takes no room on the disk
    assert_says(refused(lambda: Recipe.from_file(tmp_path / "a.yaml")), r"holds more than 524,288 bytes")


@pytest.mark.attack("an override that is nested, long or repeats itself")
@pytest.mark.parametrize("value", ["[" * 9_000, bomb(), "9" * 5_000, "x" * 600_000])
def test_overrides_have_the_same_limits(value: str) -> None:
    recipe = Recipe.from_dict(RECIPE)
    refused(lambda: recipe.with_overrides([f"task.spare={value}"]))


@pytest.mark.attack("an override that is nested, long or repeats itself")
@pytest.mark.parametrize("path", ["x." * 100_000, "." * 100_000, "training." + "k" * 100_000 + ".a", "k" * 100_000])
def test_the_path_of_an_override_may_be_long(path: str) -> None:
    recipe = Recipe.from_dict(RECIPE)
    refused(lambda: recipe.with_overrides([f"{path}=1"]))


RECORDS = {"deep": "[" * 200_000, "taken by the parser": "[" * 400 + "]" * 400, "numbers": "[" + "9" * 5_000 + "]"}


@pytest.mark.attack("a record of kdplug's own that somebody changed")
@pytest.mark.parametrize("name", RECORDS)
def test_records_that_are_read_have_limits_too(tmp_path: Path, name: str) -> None:
    for file in ("kdplug-run.json", "manifest.json", "origin.json", "state.json", "history.jsonl", "log.jsonl"):
        (tmp_path / file).write_text(f'{{"a": {RECORDS[name]}}}\n')
    training = {"num_epochs": 1, "teacher_cache": str(tmp_path)}
    recipe = Recipe.from_dict({**RECIPE, "training": training, "distillation": {"is_caching_logits": True}})
    for call in (
        lambda: read_lock(tmp_path / "kdplug-run.json"),
        lambda: begun_record(tmp_path, {}),
        lambda: CacheFolder(tmp_path).manifest(),
        lambda: read_provenance(recipe),
        lambda: read_archive(tmp_path, "state"),
    ):
        refused(call)
    with limited():
        assert list(_lines(tmp_path / "history.jsonl")) == []
        (tmp_path / "history.jsonl").write_text("3\n")
        assert list(_lines(tmp_path / "history.jsonl")) == []
        with journal(tmp_path, is_main=True, after=1):
            pass


WHOLE_NUMBERS = [
    "training.num_epochs", "training.num_steps", "training.batch_size", "training.eval_batch_size", "training.num_workers",
    "training.gradient_accumulation_steps", "training.ckpt_frequency", "training.ckpt_epoch_frequency", "training.ckpt_steps",
    "training.keep_last", "training.logging_steps", "seed", "distillation.logit_chunk",
    "distillation.intermediate_matches.0.layer_T", "distillation.intermediate_matches.0.teacher",
]  # fmt: skip


@pytest.mark.attack("a number that is too large to run")
@pytest.mark.parametrize("number", [2**31, 99999999999999999999, 10**90])
@pytest.mark.parametrize("path", WHOLE_NUMBERS)
def test_a_count_that_no_run_reaches_is_an_error_that_names_the_bound(path: str, number: int) -> None:
    changes = [f"{path}={number}", *(["training.num_epochs=null"] if path.endswith("num_steps") else [])]
    recipe = Recipe.from_dict(RECIPE)
    bound = {"training.num_workers": "1024"}.get(path, r"(-2147483647 to )?2147483647")
    assert_says(refused(lambda: recipe.with_overrides(changes)), rf"^{path}[^\n]*(<=|from) {bound}, got {number}")


@pytest.mark.attack("a number that is too large to run")
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"label_seed": 2**31}, r"^label_seed: must be <= 2147483647, got 2147483648"),
        ({"teacher_epochs": 10**12}, r"^teacher_epochs: must be <= 2147483647"),
        ({"teacher_epochs": 10**20}, r"^teacher_epochs: must be "),
    ],
)
def test_settings_of_a_task_have_bounds(settings: dict[str, int], says: str) -> None:
    tasks.build("digits")  # what it imports takes more memory than the limit
    assert_says(refused(lambda: tasks.build({"name": "digits", **settings})), says)


@pytest.mark.attack("a number that is too large to run")
def test_no_component_is_given_a_number_of_more_than_64_bits() -> None:
    data = {"kd_loss_type": {"name": "topk", "k": 99999999999999999999}}
    says = (
        r"^kd_loss_type: k: must be .* to 18446744073709551615, got 99999999999999999999|^kd_loss_type\.k: must be .*"
    )
    assert_says(refused(lambda: DistillationConfig.from_dict(data)), says)


@pytest.mark.attack("a path of a module that takes for ever to compare")
def test_globs_are_compared_in_time_that_grows_with_their_length() -> None:
    name = ".".join("a" * 40)
    with limited():
        assert not LayerPath(".".join(["**"] * 40 + ["b"])).matches(name)
        assert LayerPath(".".join(["**", "a"] * 15)).matches(name)
        assert not LayerPath("*a" * 60 + "b").matches("a" * 300)
    for path in (f"a@{'9' * 5000}", f"a:output[{'9' * 5000}]"):
        match = {"layer_T": path, "layer_S": path, "loss": "hidden_mse"}
        assert_says(
            refused(lambda match=match: DistillationConfig.from_dict({"intermediate_matches": [match]})), "cannot read"
        )
