"""``kdplug plugins new``: what it makes is in order as it is, for every kind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kdplug.cli.new_plugin import LICENSES, make_project, names_of
from kdplug.cli.scaffold import FORMS, SCAFFOLDS
from kdplug.config.text import yaml_value
from kdplug.errors import ConfigError
from kdplug.host.check.install import GROUPS

ROOT = Path(__file__).parents[2]
WORDS = {
    "loss": ("loss",),
    "features": ("losses", "--on", "features"),
    "parameters": ("loss", "--form", "parameters"),
    "bank": ("loss", "--form", "bank"),
    "layers": ("loss", "--form", "layers"),
    "both": ("loss", "--form", "features_and_logits"),
    "projection": ("projection",),
    "maps": ("projection", "--form", "maps"),
    "wrapped": ("task", "--form", "wrapped"),
    "weight": ("weight-scheduler",),
    "temperature": ("temperature_schedulers",),
    "trained": ("temperature-scheduler", "--form", "parameters"),
    "combiner": ("teacher-combiner",),
    "update": ("teacher-update",),
    "teacher": ("teacher",),
    "balancer": ("balancer",),
    "layermap": ("layer-map",),
    "task": ("Task",),
    "codec": ("cache-codec",),
    "transform": ("student-transform",),
    "evaluator": ("evaluators",),
    "hooks": ("hooks",),
    "acting": ("hooks", "--form", "acting"),
}
"""The last part of a project's name, and the words after ``--kind`` that make it."""

LONG = "a-rather-long-name-for-a-plugin-of-mine"
AWKWARD = ["lambda", "torch", "sum", "3d", "module", "match", "Test_Case", "x"]


def run(*command, cwd, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write(folder, dist, scaffold, license_name="none"):
    for path, text in make_project(dist, scaffold, license_name).texts.items():
        (folder / dist / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / dist / path).write_text(text)


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """One project of each kind, as the command makes them."""
    from kdplug.cli.app import app

    folder = tmp_path_factory.mktemp("projects")
    for name, words in WORDS.items():
        app(["plugins", "new", f"kdplug-new{name}", "--dir", str(folder), "--kind", *words], standalone_mode=False)
    return folder


@pytest.fixture(scope="module")
def site(projects, tmp_path_factory):
    """A folder with all of them installed from their wheels, which were built without network."""
    folder = tmp_path_factory.mktemp("site")
    sources = tmp_path_factory.mktemp("sources")
    for project in sorted(projects.iterdir()):
        copy = shutil.copytree(project, sources / project.name)
        run("-m", "build", "--wheel", "--no-isolation", "--outdir", sources / "dist", copy, cwd=sources)
    wheels = sorted((sources / "dist").iterdir())
    run("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", folder, *wheels, cwd=sources)
    return folder


@pytest.mark.parametrize("name", WORDS)
def test_a_project_is_complete(projects, name):
    project = projects / f"kdplug-new{name}"
    made = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    assert made >= {"pyproject.toml", "README.md", "LICENSE", ".gitignore"}
    assert ("recipe.yaml" in made) == (name not in ("combiner", "codec", "teacher"))
    assert made >= {f"kdplug_new{name}.py", f"tests/test_new{name}.py"}


def test_every_kind_has_a_project_that_is_tried_here():
    assert {scaffold.group for scaffold in SCAFFOLDS.values()} == set(GROUPS)
    assert len(WORDS) == len(SCAFFOLDS)


def test_every_form_has_a_project() -> None:
    named = {key for forms in FORMS.values() for key in forms.values()}
    assert named == {key for key in SCAFFOLDS if key in FORMS or key.split()[0] in FORMS}


def test_all_of_them_install_and_their_own_tests_pass(projects, site, tmp_path):
    environment = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    config = projects / "kdplug-newloss" / "pyproject.toml"
    words = [
        "-q",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        "-c",
        config,
        "--rootdir",
        projects,
    ]
    shown = run("-m", "pytest", *words, *sorted(projects.glob("*/tests")), cwd=tmp_path, **environment)
    assert " passed" in shown
    assert " skipped" not in shown


def test_nothing_is_wrong_with_any_of_them(site, tmp_path):
    code = "from kdplug.host.check.check import check_plugins; print(check_plugins())"
    assert run("-c", code, cwd=tmp_path, PYTHONPATH=str(site)) == "[]\n"


def test_ruff_finds_nothing_and_would_format_nothing(projects):
    run("-m", "ruff", "check", "--no-cache", ".", cwd=projects)
    run("-m", "ruff", "format", "--no-cache", "--check", ".", cwd=projects)


@pytest.mark.slow
def test_mypy_finds_nothing(projects):
    """In one run over all of them, since most of its time goes into reading torch."""
    files = [*sorted(projects.glob("*/*.py")), *sorted(projects.glob("*/tests/*.py"))]
    cache = ROOT / ".mypy_cache" if (ROOT / ".mypy_cache").is_dir() else projects.parent / "mypy"
    run(
        "-m",
        "mypy",
        "--strict",
        "--config-file",
        projects / "kdplug-newloss" / "pyproject.toml",
        "--cache-dir",
        cache,
        *files,
        cwd=ROOT,
    )


@pytest.mark.parametrize("kind", SCAFFOLDS)
def test_any_name_gives_clean_code(tmp_path, kind):
    for name in (LONG, *AWKWARD):
        write(tmp_path, f"kdplug-{name}", SCAFFOLDS[kind])
    run("-m", "ruff", "check", "--no-cache", ".", cwd=tmp_path)
    run("-m", "ruff", "format", "--no-cache", "--check", ".", cwd=tmp_path)


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("kind", SCAFFOLDS)
def test_the_entry_point_leads_to_what_the_module_defines(kind, name):
    project = make_project(f"kdplug-{name}", SCAFFOLDS[kind], "none")
    points = tomllib.loads(project.texts["pyproject.toml"])["project"]["entry-points"][SCAFFOLDS[kind].group]
    (module, _, attribute) = points[project.entry].partition(":")
    assert f"{module}.py" in project.texts
    assert (
        kind == "hooks"
        or f"\n{attribute} = " in project.texts[f"{module}.py"]
        or f"{attribute}(" in project.texts[f"{module}.py"]
        or f"class {attribute}" in project.texts[f"{module}.py"]
    )


@pytest.mark.parametrize("kind", [kind for kind, scaffold in SCAFFOLDS.items() if scaffold.has_recipe])
def test_the_readme_shows_what_the_recipe_holds(kind):
    texts = make_project("kdplug-mine", SCAFFOLDS[kind], "MIT").texts
    snippet = yaml_value(texts["README.md"].split("```yaml\n")[1].split("```")[0])
    assert snippet.items() <= yaml_value(texts["recipe.yaml"]).items()
    assert kind == "hooks" or "mine" in str(snippet)


def test_the_recipes_are_valid_once_the_plugins_are_installed(projects, site, tmp_path):
    code = "import sys, kdplug; [kdplug.Recipe.from_file(path).distillation.resolved() for path in sys.argv[1:]]"
    run("-c", code, *sorted(projects.glob("*/recipe.yaml")), cwd=tmp_path, PYTHONPATH=str(site))


@pytest.mark.parametrize("name", LICENSES)
def test_the_license_is_named_and_its_text_is_there(name):
    texts = make_project("kdplug-mine", SCAFFOLDS["loss"], name).texts
    project = tomllib.loads(texts["pyproject.toml"])["project"]
    assert project.get("license") == (None if name == "none" else name)
    assert ("LICENSE" in texts) == (name != "none")
    if name in ("MIT", "BSD-3-Clause"):
        assert "the kdplug-mine authors" in texts["LICENSE"]


@pytest.mark.parametrize("kind", [kind for kind in SCAFFOLDS if not kind.startswith("hooks")])
def test_its_tests_use_the_laws_of_its_kind(kind):
    texts = make_project("kdplug-mine", SCAFFOLDS[kind], "none").texts
    assert 'Laws):\n    entry = "kdplug-mine:mine"' in texts["tests/test_mine.py"]


def test_the_apache_text_is_the_one_that_kdplug_has():
    assert (
        make_project("kdplug-mine", SCAFFOLDS["loss"], "Apache-2.0").texts["LICENSE"] == (ROOT / "LICENSE").read_text()
    )


def test_it_asks_for_the_kdplug_versions_that_keep_plugins_working():
    project = tomllib.loads(make_project("kdplug-mine", SCAFFOLDS["loss"], "MIT").texts["pyproject.toml"])["project"]
    assert "kdplug>=0.1,<0.2" in project["dependencies"]


@pytest.mark.parametrize(
    ("dist", "module", "entry"),
    [
        ("kdplug-my-loss", "kdplug_my_loss", "my_loss"),
        ("Other.Loss", "other_loss", "other_loss"),
        ("kdplug-3d", "kdplug_3d", "3d"),
    ],
)
def test_module_and_entry_follow_from_the_name(dist, module, entry):
    assert names_of(dist) == (module, entry)


@pytest.mark.parametrize("dist", ["", "-x", "x-", "my loss", "a/b", "../a", "größe", "3d", "class"])
def test_a_name_that_no_distribution_or_module_may_have_is_refused(dist):
    with pytest.raises(ConfigError, match="NAME"):
        names_of(dist)


def test_a_folder_that_is_there_is_not_overwritten(kdplug, tmp_path):
    (tmp_path / "kdplug-mine").mkdir()
    done = kdplug("plugins", "new", "kdplug-mine", "--kind", "loss", "--dir", tmp_path)
    assert done.exit_code == 2
    assert "already exists. Choose another name" in done.stderr
    assert list((tmp_path / "kdplug-mine").iterdir()) == []


def test_a_module_that_python_finds_already_is_refused(kdplug, tmp_path):
    for name in ("json", "kdplug-presets"):
        done = kdplug("plugins", "new", name, "--kind", "loss", "--dir", tmp_path)
        assert done.exit_code == 2
        assert "already exists" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_offered_already_is_noticed_and_the_config_is_qualified(kdplug, tmp_path):
    done = kdplug("plugins", "new", "kdplug-linear", "--kind", "projection", "--dir", tmp_path)
    assert "Note: 'linear' is already the name of kdplug-presets:linear." in done.stdout
    assert "kdplug-linear:linear" in (tmp_path / "kdplug-linear" / "recipe.yaml").read_text()


def test_a_first_party_name_is_noticed_though_its_package_is_not_installed(kdplug, tmp_path, no_plugins):
    done = kdplug("plugins", "new", "kdplug-fsp", "--kind", "loss", "--dir", tmp_path)
    assert "To use your entry, write kdplug-fsp:fsp in configs." in done.stdout


def test_an_ambiguous_name_is_noticed_with_every_owner(kdplug, tmp_path, fake_site):
    for name in ("kdplug-a", "kdplug-b"):
        fake_site.add(name, losses={"mine": "m:f"})
    with fake_site.host():
        done = kdplug("plugins", "new", "kdplug-mine", "--kind", "loss", "--dir", tmp_path)
    assert "'mine' is already the name of kdplug-a:mine, kdplug-b:mine." in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kind", "los"), "--kind: unknown kind 'los'. Did you mean 'loss'? Kinds: loss, projection,"),
        (("--kind", "weight-schedular"), "Did you mean 'weight_scheduler'?"),
        (("--kind", "loss", "--form", "logit"), "--form: unknown form 'logit' of --kind loss. Did you mean 'logits'?"),
        (("--kind", "layer-map", "--on", "logits"), "--form: a project of --kind layer-map has one form only"),
        (
            ("--kind", "task", "--form", "wraped"),
            "--form: unknown form 'wraped' of --kind task. Did you mean 'wrapped'?",
        ),
        (("--kind", "loss", "--license", "Apache"), "--license: unknown license 'Apache'. Did you mean 'Apache-2.0'?"),
    ],
)
def test_a_wrong_word_is_an_error_that_names_the_nearest(kdplug, tmp_path, words, message):
    done = kdplug("plugins", "new", "kdplug-mine", "--dir", tmp_path, *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_says_what_to_do_next(kdplug, tmp_path):
    shown = kdplug("plugins", "new", "kdplug-mine", "--kind", "loss", "--dir", tmp_path).stdout
    for command in (f"cd {tmp_path / 'kdplug-mine'}", "pip install -e '.[test]'", "pytest", "kdplug run recipe.yaml"):
        assert f"\n  {command}" in shown


@pytest.mark.parametrize("words", [["--help"], ["kdplug-mine", "--kind", "loss"]])
def test_it_imports_no_torch(fake_site, tmp_path, words):
    code = f"""
        import sys
        from kdplug.cli.app import app
        app(['plugins', 'new', *{words}, '--dir', {str(tmp_path / "out")!r}], standalone_mode=False)
        print({{'torch', 'kdplug_presets'}} & set(sys.modules))
    """
    assert fake_site.prints(code).endswith("set()")
