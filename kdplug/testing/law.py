"""Base class of laws, the pytest tests that every entry of a kind must pass."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, TypeVar

import pytest
import torch
from torch import Tensor

from kdplug.errors import ConfigError, PluginError, did_you_mean
from kdplug.host.component import Component, build_component, misspelt
from kdplug.host.entry import LOCAL, Entry
from kdplug.host.kind import KINDS
from kdplug.host.registry import REGISTRIES
from kdplug.host.spec import ComponentSpec
from kdplug.testing.sample import seeded


def is_close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> bool:
    """Return whether two tensors agree within ``tolerance``, relative and absolute."""
    return torch.allclose(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


def apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference between two lists of tensors."""
    return max(float((one - two).abs().max()) for one, two in zip(found, expected, strict=True))


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all tensors are finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def number(value: Tensor | float) -> float:
    """Convert a scalar to a number, detached from its graph."""
    return float(value.detach() if isinstance(value, Tensor) else value)


Law = TypeVar("Law", bound=Callable[..., None])

_BUILD_LAW = "test_it_can_be_built"


def where(condition: Callable[[Any], bool]) -> Callable[[Law], Law]:
    """Decorate a law that applies only if ``condition``, given the class of laws, holds."""

    def mark(law: Law) -> Law:
        law.__dict__["applies"] = condition
        return law

    return mark


def unless(*facts: str) -> Callable[[Law], Law]:
    """Decorate a law that cannot hold for an entry that states one of these facts. It is then skipped with the reason."""

    def mark(law: Law) -> Law:
        law.__dict__["unless"] = facts
        return law

    return mark


def advise(advice: str) -> Callable[[Law], Law]:
    """Decorate a law with what to change if it is broken. Its failures end with this sentence."""

    def mark(law: Law) -> Law:
        law.__dict__["advice"] = advice
        return law

    return mark


def broken(message: str) -> NoReturn:
    """Fail a law with this message, without a traceback through the kit."""
    pytest.fail(message, pytrace=False)


def graph_without_numbers(graph: torch.fx.GraphModule, _inputs: list[Any]) -> Callable[..., Any]:
    """Backend of ``torch.compile`` that runs a graph eagerly, and raises an error if it reads a number from a tensor.

    ``torch.compile`` accepts ``.item()``, for which a device waits.
    """
    if any(node.target == "item" for node in graph.graph.nodes):
        raise RuntimeError("it reads a number from a tensor, by .item(), float() or int()")
    return graph.forward


class Laws:
    """Laws about one entry. A subclass names the entry, and pytest collects the laws that apply to it."""

    entry: ClassVar[str | Callable[..., Any] | None] = None
    """The entry: a bare name, a qualified one (``distribution:name``), or the callable itself."""

    settings: ClassVar[Mapping[str, Any]] = {}
    """The settings to build the entry with."""

    except_for: ClassVar[Mapping[str, str]] = {}
    """Laws that the entry is known to break, with the reason: ``{"test_…": "reads position 0 only, by definition"}``."""

    _found: ClassVar[Entry]
    _trouble: ClassVar[Exception | None] = None
    _left_out: ClassVar[frozenset[str]] = frozenset()
    _excluded: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._check_names()
        if cls.entry is None:
            return
        cls._trouble = None
        try:
            cls._found = _entry(cls.kind_of(), cls.entry)
            cls._found.signature  # noqa: B018 reading it imports the entry
        except Exception as error:
            cls._trouble = error
        cls._choose()

    @classmethod
    def _check_names(cls) -> None:
        """Raise ``PluginError`` for an attribute whose name is similar to that of a declaration."""
        known = {name for one in cls.__mro__ for name in getattr(one, "__annotations__", ()) if name[0] != "_"}
        if found := misspelt(cls, known, above="kdplug.testing"):
            name, near = found[0]
            raise PluginError(f"{cls.__name__}: there is no declaration {name!r}. Did you mean {near!r}?")

    @classmethod
    def kind_of(cls) -> str:
        """Return the plural of the entry's kind. Each kind's laws define it."""
        raise PluginError(
            f"{cls.__name__} has no kind. Derive it from the test class of a kind, such as LossLaws or TaskLaws"
        )

    @classmethod
    def _choose(cls) -> None:
        """Remove laws that do not apply, and restore laws that a parent removed and that do.

        A law that a stated fact excludes is replaced by one that is skipped with the reason.
        """
        laws = _definitions(cls)
        for name in cls.except_for:
            if name not in laws:
                raise PluginError(f"{cls.__name__}.except_for: there is no test {name!r}.{did_you_mean(name, laws)}")
        left_out, excluded = set(), {}
        stated = cls.stated() if cls._trouble is None else {}
        for name, law in laws.items():
            if name == _BUILD_LAW:
                setattr(cls, name, _seeded(law))
                continue
            applies = cls._trouble is None and name not in cls.except_for
            if not applies or not law.__dict__.get("applies", _always)(cls):
                setattr(cls, name, None)
                left_out.add(name)
            elif reasons := [stated[fact] for fact in law.__dict__.get("unless", ()) if fact in stated]:
                excluded[name] = reasons[0]
                setattr(cls, name, _skipped(law, reasons[0]))
            else:
                setattr(cls, name, _seeded(law))
        cls._left_out, cls._excluded = frozenset(left_out), excluded

    @classmethod
    def stated(cls) -> Mapping[str, str]:
        """Return the facts that the entry states and that exclude laws, each with the words that state it."""
        return {}

    @classmethod
    def asks_for(cls, name: str) -> bool:
        return name in cls._found.inputs

    def build(self) -> Component:
        """Build a fresh component of the entry with ``settings``."""
        return build_component(self._found, ComponentSpec(self._found.name, (), dict(self.settings), "mapping"))

    def first_law(self) -> tuple[str, Callable[[], object]]:
        """Return an ordinary call of the entry, and the law that is broken if this call fails."""
        return _BUILD_LAW, self.build

    def test_it_can_be_built(self) -> None:
        """The entry loads, accepts its ``settings``, and can be rebuilt from its serialized form.

        Catches a typo in pyproject.toml, an import that fails, a setting that does not survive a config file.
        """
        if self._trouble is not None:
            raise self._trouble
        spec = self.build().qualified_spec()
        settings = {key: value for key, value in json.loads(json.dumps(spec)).items() if key != "name"}
        again = build_component(self._found, ComponentSpec(self._found.name, (), settings, "mapping"))
        if again.qualified_spec() != spec:
            broken(
                f"settings do not survive a config file: {spec} came back as {again.qualified_spec()}. Use plain data, and "
                "None instead of nan"
            )

    def test_its_settings_have_a_schema_and_valid_defaults(self) -> None:
        """Catches a default outside its own bounds, which would fail only once a config writes out every default.

        A default that conflicts with the small test ``settings`` must be valid together with the other defaults.
        """
        model = self._found.settings
        model.model_json_schema()
        given = {field.alias or name: field.default for name, field in model.model_fields.items() if _has(field)}
        for name, value in given.items():
            error = self._refusal({**self.settings, name: value}) and self._refusal({**self.settings, **given})
            if error is not None and error.field.split(".")[0] == name:
                broken(f"the default of setting {name!r} is not valid: {error.message}. Change it or its bounds")
            if error is not None:
                raise error

    def _refusal(self, settings: Mapping[str, Any]) -> ConfigError | None:
        """Return the error that the settings raise, if any."""
        try:
            build_component(self._found, ComponentSpec("", (), dict(settings), "mapping"))
        except ConfigError as error:
            return error
        return None

    def test_it_has_a_docstring(self) -> None:
        """Catches an entry that ``kdplug plugins show`` cannot describe."""
        target: Any = self._found.load()
        while isinstance(target, functools.partial):
            target = target.func
        written = vars(target).get("__doc__") if inspect.isclass(target) else getattr(target, "__doc__", None)
        if not (written or "").strip():
            broken(f"{self._found.name} has no docstring. Write one: 'kdplug plugins show' prints its first line")


def law_names(laws: type[Laws]) -> list[str]:
    """Return the sorted laws that apply to the entry of ``laws``."""
    excluded = excluded_laws(laws)
    return sorted(name for name in _definitions(laws) if getattr(laws, name) is not None and name not in excluded)


def excluded_laws(laws: type[Laws]) -> dict[str, str]:
    """Return the laws that facts of the entry exclude, each with the fact, such as ``"random = True"``."""
    return dict(sorted(laws._excluded.items()))  # noqa: SLF001  own attribute


def broken_laws(laws: type[Laws], only: Collection[str] | None = None) -> dict[str, str]:
    """Run the laws, or ``only`` those, without pytest's runner; return the broken ones with their messages."""
    found = {}
    for name in law_names(laws) if only is None else sorted(only):
        try:
            getattr(laws(), name)()
        except pytest.skip.Exception:
            continue
        except (Exception, pytest.fail.Exception) as error:
            found[name] = str(error) if isinstance(error, pytest.fail.Exception) else _described(error)
    return found


def _described(error: BaseException) -> str:
    return _sentences(f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ()))


def _sentences(*parts: str) -> str:
    """Join sentences, each of which may lack its end."""
    *first, last = parts
    return " ".join([*(one if one.endswith(("?", "!")) else f"{one.rstrip('.')}." for one in first), last])


def _always(_: object) -> bool:
    return True


def _seeded(law: Callable[..., None]) -> Callable[..., None]:
    """Return the law with torch's global generator seeded, and restored afterwards: an entry may draw from it.

    Its advice is added to a failure, unless an ordinary call fails in the same way.
    """

    @functools.wraps(law)
    def run(self: Laws) -> None:
        try:
            with seeded(0):
                law(self)
        except pytest.fail.Exception as failure:
            advice = _advice(self, law, failure)
            if advice is None:
                raise
            message = str(failure)
        except Exception as error:
            if (advice := _advice(self, law, error)) is not None:
                error.add_note(advice)
            raise
        else:
            return
        broken(_sentences(message, advice))

    run.__dict__["law"] = law
    return run


def _advice(laws: Laws, law: Callable[..., None], failure: BaseException) -> str | None:
    """Return the advice for a failure of ``law``: its own, or to fix the law that an ordinary call breaks."""
    own: str | None = law.__dict__.get("advice")
    for name, call in ((_BUILD_LAW, laws.build), laws.first_law()):
        try:
            with seeded(0):
                call()
        except (Exception, pytest.fail.Exception) as error:
            is_broken = isinstance(failure, pytest.fail.Exception)
            if is_broken and str(error) not in str(failure):
                return own
            if name == law.__name__:
                return None
            what = "raises this" if type(error) is type(failure) and not is_broken else "fails"
            return f"The {KINDS[laws.kind_of()].noun} {what} for any input: fix {name} first"
    return own


def _skipped(law: Callable[..., None], reason: str) -> Callable[..., None]:
    @functools.wraps(law)
    def skipped(self: Laws) -> None:
        pytest.skip(f"{self._found.qualified} states {reason}, which excludes this test")

    return skipped


def _has(field: Any) -> bool:
    return not field.is_required() and field.default_factory is None


def _definitions(cls: type[Laws]) -> dict[str, Callable[..., None]]:
    """Every law by name, as defined: a parent's removal of a law does not count as the author's choice."""
    found: dict[str, Any] = {}
    for owner in cls.__mro__:
        machine = {*vars(owner).get("_left_out", ()), *vars(owner).get("_excluded", ())}
        for name, law in vars(owner).items():
            if name.startswith("test_") and name not in machine:
                found.setdefault(name, law)
    return {name: getattr(law, "law", law) for name, law in found.items() if callable(law)}


def _entry(plural: str, given: str | Callable[..., Any]) -> Entry:
    if isinstance(given, str):
        return REGISTRIES[plural].entry(given)
    name = getattr(given, "__name__", None) or type(given).__name__
    return Entry(KINDS[plural], name, LOCAL, "", given, "local")
