"""Install a plugin in a temporary folder."""

from __future__ import annotations

import base64
import hashlib
import importlib
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kdplug.host.active import active, isolated
from kdplug.host.host import Host
from kdplug.host.metadata import Distribution, scan
from kdplug.host.name import fold_distribution

EntryPoints = Mapping[str, Mapping[str, str]]
"""Maps a group to entry names and their ``"module:attribute"``."""


@dataclass(frozen=True, slots=True)
class PluginSite:
    """A folder with one installed distribution: its modules and a ``dist-info``."""

    path: Path
    name: str
    version: str

    @property
    def dist_info(self) -> Path:
        return self.path / f"{re.sub(r'[-_.]+', '_', self.name)}-{self.version}.dist-info"

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with the folder first on ``PYTHONPATH``, so that a subprocess finds the plugin."""
        rest = os.environ.get("PYTHONPATH")
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.path), *([rest] if rest else [])])}


def write_plugin_site(
    path: Path,
    name: str,
    version: str = "0.1.0",
    entry_points: EntryPoints | None = None,
    files: Mapping[str, str] | None = None,
) -> PluginSite:
    """Install a distribution into the folder ``path``: ``files`` (path to text, dedented) and its ``dist-info``.

    Does not change any import path; several sites may share a folder.
    """
    site = PluginSite(path, name, version)
    info = site.dist_info.name
    texts = {file: textwrap.dedent(text) for file, text in (files or {}).items()}
    texts[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    texts[f"{info}/INSTALLER"] = "kdplug.testing\n"
    if entry_points:
        texts[f"{info}/entry_points.txt"] = _sections(entry_points)
    for file, text in texts.items():
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_text(text, encoding="utf-8", newline="\n")
    rows = [f"{file},sha256={_digest(text)},{len(text.encode())}" for file, text in texts.items()]
    (path / info / "RECORD").write_text("\n".join([*rows, f"{info}/RECORD,,", ""]), encoding="utf-8")
    return site


@contextmanager
def plugin_site(
    name: str,
    version: str = "0.1.0",
    entry_points: EntryPoints | None = None,
    files: Mapping[str, str] | None = None,
) -> Iterator[PluginSite]:
    """Install a plugin within a ``with`` block: on ``sys.path`` and in the registries.

    The registries list it in addition to the installed plugins, or alone under ``isolated_plugins``. It hides an
    installed plugin of the same name. Afterwards its modules are unloaded and its folder is deleted. Entries registered
    in this process are not visible inside the block.

    ::

        with plugin_site("kdplug-twice", "1.0", {"kdplug.losses": {"twice": "twice:loss"}}, {"twice.py": "..."}) as site:
            kdplug.losses.build("kdplug-twice:twice")
            subprocess.run([sys.executable, "-m", "pytest"], env=site.environment)
    """
    with TemporaryDirectory(prefix="kdplug-site-") as folder:
        site = write_plugin_site(Path(folder).resolve(), name, version, entry_points, files)
        with _on_path(site.path), isolated(_seen_with(site), active().plugin_filter):
            yield site


def _sections(entry_points: EntryPoints) -> str:
    lines = []
    for group, points in entry_points.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items()), ""]
    return "\n".join(lines)


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def _seen_with(site: PluginSite) -> list[Distribution]:
    own = fold_distribution(site.name)
    return [dist for dist in active().dists if fold_distribution(dist.name) != own] + scan([str(site.path)])


@contextmanager
def _on_path(path: Path) -> Iterator[None]:
    sys.path.insert(0, str(path))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(path))
        importlib.invalidate_caches()
        for name, module in list(sys.modules.items()):
            if _lies_in(path, module):
                del sys.modules[name]


def _lies_in(path: Path, module: object) -> bool:
    spec = getattr(module, "__spec__", None)
    if not isinstance(spec, ModuleSpec):
        return False
    places = [spec.origin, *(spec.submodule_search_locations or ())]
    return any(place is not None and Path(place).is_relative_to(path) for place in places)


@pytest.fixture
def isolated_plugins() -> Iterator[Host]:
    """Give one test registries without any installed plugin.

    Plugins that the test adds with ``plugin_site`` or ``@kdplug.losses.register`` are visible, and removed after the
    test. Import the fixture in a ``conftest.py`` (``from kdplug.testing import isolated_plugins``), or name this module
    in one: ``pytest_plugins = ["kdplug.testing.temporary_site"]``.
    """
    with isolated() as host:
        yield host
