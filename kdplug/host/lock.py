"""Compare a run with the record of an earlier one: ``kdplug run --locked kdplug-run.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdplug.errors import ConfigError, RunError
from kdplug.host.bounded_json import read_json
from kdplug.host.manifest import environment_record
from kdplug.host.name import fold_distribution

Record = Mapping[str, Any]
"""Content of ``kdplug-run.json``."""

_SHAPE: dict[str, type] = {
    "kdplug": str,
    "python": str,
    "torch": str,
    "plugins": list,
    "recipe": dict,
    "config_sha256": str,
}
_LONGEST = 80
_NOTHING = object()


def check_environment(path: Path) -> None:
    """Check that the installed versions and plugins match the record in ``path``. Nothing is imported.

    Raises: ``RunError`` and ``ConfigError`` as ``check_locked``.
    """
    _refuse(path, _environment(read_lock(path), environment_record()))


def check_locked(path: Path, now: Record) -> None:
    """Check that the record ``now`` matches the one in ``path``.

    Raises: ``RunError`` that lists every difference; ``ConfigError`` if the file is not a run record.
    """
    _refuse(path, differences(read_lock(path), now))


def _refuse(path: Path, found: list[str]) -> None:
    if found:
        count = "1 difference" if len(found) == 1 else f"{len(found)} differences"
        raise RunError(f"{count} from {str(path)!r}:" + "".join(f"\n    {line}" for line in found), field="--locked")


def read_lock(path: Path) -> Record:
    """Read a run record.

    Raises: ``ConfigError`` if the file cannot be read or is not a run record.
    """
    try:
        data = read_json(path)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {str(path)!r}", field="--locked") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(f"cannot read {str(path)!r}: {reason}", field="--locked") from error
    wrong = _wrong(data)
    if wrong:
        raise ConfigError(f"{str(path)!r} is not a run record: {wrong}", field="--locked")
    return data  # type: ignore[no-any-return]


def differences(locked: Record, now: Record) -> list[str]:
    """Return one line per difference between two records.

    A plugin that is only in ``now`` is a difference if it has hooks; without hooks it cannot affect the recipe. The
    commit of a plugin is compared only if its content has no hash.
    """
    now = json.loads(json.dumps(now))
    changed = list(_values(locked["recipe"], now["recipe"], ""))
    if not changed and locked["config_sha256"] != now["config_sha256"]:
        hashes = _both(locked["config_sha256"], now["config_sha256"])
        changed = [f"config_sha256: {hashes}, but the recipes are equal: the lock was edited by hand"]
    return _environment(locked, now) + changed


def _wrong(data: object) -> str:
    if not isinstance(data, dict):
        return "it is not a mapping"
    for key, kind in _SHAPE.items():
        if not isinstance(data.get(key), kind):
            return f"it lacks {key!r}" if key not in data else f"{key!r} is {_shown(data[key])}"
    for plugin in data["plugins"]:
        if not isinstance(plugin, dict) or not all(isinstance(plugin.get(key), str) for key in ("dist", "version")):
            return f"{_shown(plugin)} is not a plugin record"
    return ""


def _environment(locked: Record, now: Record) -> list[str]:
    return [*_versions(locked, now), *_plugins(locked, now)]


def _versions(locked: Record, now: Record) -> Iterator[str]:
    if locked["kdplug"] != now["kdplug"]:
        yield f"kdplug: {_both(locked['kdplug'], now['kdplug'])}: pip install kdplug=={locked['kdplug']}"
    if locked["torch"] != now["torch"]:
        yield f"torch: {_both(locked['torch'], now['torch'])}"
    if _minor(locked["python"]) != _minor(now["python"]):
        yield f"python: {_both(locked['python'], now['python'])}"


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _plugins(locked: Record, now: Record) -> Iterator[str]:
    here = {fold_distribution(plugin["dist"]): plugin for plugin in now["plugins"]}
    ignored = {fold_distribution(plugin["dist"]): plugin["reason"] for plugin in now["ignored_plugins"]}
    for plugin in locked["plugins"]:
        name = fold_distribution(plugin["dist"])
        if name in here:
            yield from _plugin(plugin, here.pop(name))
        elif name in ignored:
            yield f"{plugin['dist']} {plugin['version']} is disabled: {ignored[name]}"
        else:
            yield f"{plugin['dist']} {plugin['version']} is not installed: pip install {_pinned(plugin)}"
    for plugin in here.values():
        if plugin["hooks"]:
            yield (
                f"{plugin['dist']} {plugin['version']} has hooks and is not in the lock. "
                f"Disable it: KDPLUG_PLUGINS=-{plugin['dist']}"
            )


def _plugin(locked: Record, now: Record) -> Iterator[str]:
    if locked["version"] != now["version"]:
        yield f"{now['dist']}: {_both(locked['version'], now['version'])}: pip install {_pinned(locked)}"
        return
    for key, what in (("sha256", "content"), ("commit", "commit")):
        was, is_ = locked.get(key), now[key]
        if was is not None and is_ is not None:
            if was != is_:
                editable = ", editable" if now["editable"] else ""
                yield f"{now['dist']} {now['version']}{editable}: its {what} differs ({key} {_both(was, is_)})"
            return


def _pinned(plugin: Record) -> str:
    return f"{plugin['dist']}=={plugin['version']}"


def _values(was: Any, is_: Any, path: str) -> Iterator[str]:
    """Yield each path at which two trees of plain data differ."""
    if isinstance(was, dict) and isinstance(is_, dict):
        for key in {**was, **is_}:
            yield from _values(was.get(key, _NOTHING), is_.get(key, _NOTHING), f"{path}.{key}" if path else key)
    elif isinstance(was, list) and isinstance(is_, list) and len(was) == len(is_):
        for place, (left, right) in enumerate(zip(was, is_, strict=True)):
            yield from _values(left, right, f"{path}.{place}")
    elif was != is_ or isinstance(was, bool) != isinstance(is_, bool):
        yield f"{path}: {_both(was, is_)}"


def _both(was: object, is_: object) -> str:
    return f"{_shown(was)} in the lock, {_shown(is_)} here"


def _shown(value: object) -> str:
    if value is _NOTHING:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
