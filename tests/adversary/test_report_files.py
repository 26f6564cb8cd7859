"""Files of a run that someone changed, or that something damaged: the report names the file, and no data become markup."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from itertools import islice

import pytest
from report_scene import write_run

from kdplug import RunError
from kdplug.report.page.write import write_report

ODD = ["x", None, -1, 0, 1e308, -1e308, float("nan"), float("inf"), 10**99, True, [], {}, [[]], "\ud800", "<b>" * 500]
MARKUP = "</title></style></svg></desc></table><script>alert(1)</script><img src=x onerror=alert(1)>\"'`{{7*7}}{% x %}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "run", seeds=2, tests=12, steps=20, shuffled=True)


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def leaves(data, path=()):
    """Yield the path of each value of nested data, also of lists and mappings; of long lists only the first two."""
    inner = data.items() if isinstance(data, dict) else islice(enumerate(data), 2) if isinstance(data, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def changed(data, path, value):
    found = json.loads(json.dumps(data))
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return found


def is_held(folder) -> bool:
    """Return whether the page is written, or the error names a file of the folder."""
    try:
        write_report(folder)
    except RunError as error:
        return str(folder) in str(error)
    return True


@pytest.mark.slow
@pytest.mark.attack("an odd value in a file that the report reads")
@pytest.mark.parametrize("name", ["metrics.json", "kdplug-run.json"])
def test_every_value_may_be_odd(name, copy, attempts):
    data = json.loads((copy / name).read_text())
    failed = []
    for place, path in enumerate(leaves(data)):
        for value in ODD if place % 3 == 0 else ODD[place % len(ODD) :][:4]:
            (copy / name).write_text(json.dumps(changed(data, path, value)))
            held = is_held(copy)
            attempts.record(held)
            if not held:
                failed.append((path, value))
    assert not failed


@pytest.mark.attack("an odd value in a file that the report reads")
@pytest.mark.parametrize("name", ["predictions.jsonl", "seed-0/distilled/history.jsonl"])
def test_every_value_of_a_line_may_be_odd(name, copy, attempts):
    lines = (copy / name).read_text().splitlines(keepends=True)
    data = json.loads(next(line for line in lines if "distilled" in line or "terms" in line))
    for path in leaves(data):
        for value in ODD:
            (copy / name).write_text(json.dumps(changed(data, path, value)) + "\n" + "".join(lines))
            attempts.record(is_held(copy))
    assert attempts.held == attempts.tried


@pytest.mark.attack("a file of the report cut off or filled with bytes")
@pytest.mark.parametrize(
    "name", ["metrics.json", "kdplug-run.json", "predictions.jsonl", "seed-1/no_teacher/history.jsonl"]
)
def test_a_cut_or_garbled_file_is_an_error(name, copy, attempts):
    content = (copy / name).read_bytes()
    for length in (0, 1, len(content) // 3, len(content) // 2, len(content) - 2):
        (copy / name).write_bytes(content[:length])
        attempts.record(is_held(copy))
    for junk in (b"\xff\xfe", b"\x00" * 100, b"[" * 100_000, b'{"step": ' + b"9" * 5000 + b"}\n", b"null\n"):
        (copy / name).write_bytes(junk)
        attempts.record(is_held(copy))
    (copy / name).unlink()
    (copy / name).mkdir()
    attempts.record(is_held(copy))
    assert attempts.held == attempts.tried


@pytest.mark.attack("markup in the data of a report")
def test_no_text_of_the_data_becomes_markup(copy):
    for name in ("metrics.json", "kdplug-run.json"):
        data = _marked(json.loads((copy / name).read_text()))
        (copy / name).write_text(json.dumps(data))
    for file in (copy / "predictions.jsonl", *copy.glob("seed-*/*/history.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(_marked(line)) + "\n" for line in lines))
    text = write_report(copy).read_text(encoding="utf-8")
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(text)
    assert MARKUP[-20:].split("{{")[1] in text
    assert not {"script", "img", "b"} & {tag for tag, _ in found}
    assert not [name for _, attributes in found for name in attributes if name.startswith("on")]
    assert "{{7*7}}" in text
    assert "49" not in [attributes.get("title") for _, attributes in found]


KEPT = {"arm", "outcome", "target", "name"}
"""Texts whose values have a meaning."""


def _marked(data, key=""):
    """Append markup to every text and every name of a term, except to those with a meaning."""
    if isinstance(data, dict):
        return {
            name + MARKUP * (key == "terms"): _marked(value, name) for name, value in data.items() if name != "weights"
        }
    if isinstance(data, list):
        return [_marked(one, key) for one in data]
    return data + MARKUP if isinstance(data, str) and key not in KEPT and data != "accuracy" else data
