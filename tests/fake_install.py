"""Distributions that look installed: a real ``dist-info`` and modules in a folder that goes on the path."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import dedent

from kdplug.host.active import isolated
from kdplug.host.host import Host
from kdplug.host.metadata import Distribution, EntryPoint, scan
from kdplug.host.plugin_filter import PluginFilter

Offers = Mapping[str, Iterable[tuple[str, str]] | Mapping[str, str]]


def write_distribution(
    folder: Path,
    name: str,
    version: str = "1.0",
    offers: Offers | None = None,
    files: Mapping[str, str] | None = None,
    direct_url: Mapping[str, object] | str | None = None,
) -> Path:
    """Write ``name`` into ``folder`` as an installer would, and return its ``dist-info``.

    ``offers`` maps an entry-point group, without its ``kdplug.``, to pairs of name and target; ``files`` maps paths of
    modules to their source.
    """
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nAbout Name: it\n")
    lines = []
    for group, points in (offers or {}).items():
        lines.append(f"[kdplug.{group}]")
        lines += [f"{key} = {target}" for key, target in (points.items() if isinstance(points, Mapping) else points)]
    if lines:
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for path, source in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(dedent(source))
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in (*(files or {}), f"{info.name}/METADATA")))
    if direct_url is not None:
        text = direct_url if isinstance(direct_url, str) else json.dumps(direct_url)
        (info / "direct_url.json").write_text(text)
    importlib.invalidate_caches()
    return info


class FakeSite:
    """A folder of fake distributions: seen by hosts of this process, and by subprocesses through ``PYTHONPATH``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        name: str,
        version: str = "1.0",
        *,
        files: Mapping[str, str] | None = None,
        direct_url: Mapping[str, object] | str | None = None,
        **offers: Mapping[str, str] | Iterable[tuple[str, str]],
    ) -> Path:
        """Install ``name``; each keyword is an entry-point group (``losses={"dkd": "module:function"}``)."""
        return write_distribution(self.folder, name, version, offers, files, direct_url)

    def host(self, **switch: object) -> AbstractContextManager[Host]:
        """For a ``with`` block, registries that see this folder alone; keywords are those of ``PluginFilter``."""
        return isolated(scan([str(self.folder)]), PluginFilter(**switch) if switch else None)  # type: ignore[arg-type]

    def python(self, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``code`` in a new interpreter that has this folder on its path."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("KDPLUG_")}
        path = os.pathsep.join(filter(None, [str(self.folder), kept.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, *arguments, "-c", dedent(code)],
            env={**kept, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def prints(self, code: str, **environment: str) -> str:
        """What ``code`` prints in a new interpreter; it must succeed and say nothing on stderr."""
        done = self.python(code, **environment)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.strip()

    def forget_modules(self) -> None:
        """Drop every module that was imported from this folder."""
        for name, module in list(sys.modules.items()):
            search = getattr(module, "__spec__", None) and module.__spec__.submodule_search_locations
            places = [getattr(module, "__file__", None), *(search or ())]
            if any(str(place).startswith(str(self.folder)) for place in places):
                del sys.modules[name]


def distribution(
    name: str, version: str = "1.0", **offers: Mapping[str, str] | Iterable[tuple[str, str]]
) -> Distribution:
    """What ``scan`` would say of such a distribution, without any file."""
    points = [
        EntryPoint(f"kdplug.{group}", key, target)
        for group, pairs in offers.items()
        for key, target in (pairs.items() if isinstance(pairs, Mapping) else pairs)
    ]
    return Distribution(name, version, tuple(points))
