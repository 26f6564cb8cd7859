"""One term of a distillation: a loss, its weight, and the tensors that it reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from kdplug.config.key import Place
from kdplug.config.layer import (
    Layers,
    OptionalLayers,
    TensorPaths,
    check_pair,
    in_list,
    is_path,
    names_schema,
    read_names,
)
from kdplug.config.match import (
    FEATURE_REQUIRED,
    Feature,
    IntermediateMatch,
    OptimizerOptions,
    Projection,
    TeacherField,
    scales_something,
)
from kdplug.config.model import (
    COMPONENT_SCHEMA,
    ConfigModel,
    Temperature,
    Text,
    WeightScheduler,
    WholeNumber,
    is_none,
    read_component,
    write_component,
)
from kdplug.config.weight import TermWeight
from kdplug.errors import ConfigError, KdplugError
from kdplug.host.kind import NAMED
from kdplug.host.registry import losses, temperature_schedulers
from kdplug.host.spec import ComponentSpec

Slot = Literal["kd", "match"]

KD_LOSS = "kd_loss"
HARD_LABEL_LOSS = "hard_label_loss"

NO_SCHEDULER = ComponentSpec("none")
"""Value of a term's ``temperature_scheduler`` that disables the scheduler of the config for this term."""

_LOSS, _SCHEDULER = Place("losses"), Place("temperature_schedulers", optional=True)


def _read_scheduler(data: object) -> ComponentSpec | None:
    if data is None:
        return None
    if is_none(data) or data == NO_SCHEDULER:
        return NO_SCHEDULER
    spec = read_component(data)
    temperature_schedulers.check(spec)
    return spec


def _write_scheduler(spec: ComponentSpec | None) -> Any:
    return None if spec is None else write_component(spec)


TermLoss = Annotated[
    ComponentSpec,
    PlainValidator(read_component),
    PlainSerializer(write_component),
    WithJsonSchema(COMPONENT_SCHEMA),
    _LOSS,
]
TermScheduler = Annotated[
    ComponentSpec | None,
    PlainValidator(_read_scheduler),
    PlainSerializer(_write_scheduler),
    WithJsonSchema({"anyOf": [{"type": "null"}, *COMPONENT_SCHEMA["anyOf"]]}),
    _SCHEDULER,
]


Names = Annotated[
    tuple[str, ...] | None,
    PlainValidator(lambda data: read_names(data, "values")),
    PlainSerializer(lambda names: names and list(names)),
    WithJsonSchema(names_schema(r"\S")),
]
"""Different names, or none."""


def _read_name(data: str | None) -> str | None:
    if data == HARD_LABEL_LOSS:
        raise ConfigError(f"{data!r} is the name of a built-in term. Choose another name")
    if data is not None and not data.strip():
        raise ConfigError("must not be blank")
    return data


_ONLY_ON_FEATURES = ("feature", "proj")
_DEFAULTED = frozenset({"temperature", "temperature_scheduler"})
"""Keys that default to those of the distillation."""


class TermConfig(ConfigModel):
    """A loss and its weight: on logits, on features, or on both.

    Without layers the loss compares the logits, head by head; ``head_S`` and ``head_T`` select one head of each model. With
    ``layer_S`` and ``layer_T``, written as in an intermediate match, it compares features; a loss that also requests logits
    gets those of one head: head 0, unless ``head_S`` and ``head_T`` select another. A loss that requests extras or
    parameters reads those that ``extras``, ``reads_S`` and ``reads_T`` name; it may read nothing else.
    """

    loss: TermLoss = Field(description="loss between the logits, or between the features if layers are given")
    weight: TermWeight = Field(
        default=1.0,
        description="weight of the term; with a scheduler, the base weight. `{share: 0.3}` gives the term this share of the "
        "gradient: the weight is computed before training",
    )
    weight_scheduler: WeightScheduler = None
    temperature: Temperature | None = Field(
        default=None, description="temperature of this term; by default that of the distillation"
    )
    temperature_scheduler: TermScheduler = Field(
        default=None,
        description="temperature scheduler of this term. If the key is left out, that of the distillation applies; if it is "
        "`none`, this term has no scheduler",
    )
    head_S: WholeNumber | None = Field(default=None, description="head of the student whose logits are read, from 0")  # noqa: N815
    head_T: WholeNumber | None = Field(default=None, description="head of the teacher whose logits are read, from 0")  # noqa: N815
    layer_T: OptionalLayers = Field(  # noqa: N815  TextBrewer's key
        default=None,
        description="layer of the teacher: index into the adaptor's outputs (negative from the end), module path, or a "
        "list; none for a loss on logits",
    )
    layer_S: OptionalLayers = Field(default=None, description="layer of the student, in the same forms")  # noqa: N815
    feature: Feature = Field(
        default="hidden",
        description="feature to compare: `hidden` or `attention`; required with layers, unless both are module paths",
    )
    proj: Projection = Field(default=None, description="projection of the student's feature to the teacher's width")
    extras: Names = Field(
        default=None,
        description="names of tensors that the adaptors return under `extras`, for a loss that requests `student_extras` or "
        "`teacher_extras`",
    )
    reads_S: TensorPaths = Field(  # noqa: N815
        default=None,
        description="parameters and buffers of the student, such as `fc:parameter.weight` or `bn:buffer.running_var`, for a "
        "loss that requests `student_parameters`",
    )
    reads_T: TensorPaths = Field(  # noqa: N815
        default=None, description="parameters and buffers of the teacher, for a loss that requests `teacher_parameters`"
    )
    loss_options: OptimizerOptions = Field(
        default=None,
        description="options of the loss's own parameter group in the optimizer, such as `{lr: 1.0e-3}`, if it has parameters",
    )
    name: Annotated[Text | None, AfterValidator(_read_name)] = Field(
        default=None,
        description="name of the term in reports; defaults to the loss, with feature and layers if it has any",
        json_schema_extra={"pattern": r"\S", "not": {"enum": [HARD_LABEL_LOSS]}},
    )
    teacher: TeacherField = Field(
        default=None,
        description="teacher that the term reads, by index or key, or `student`: the student itself, detached; without it, a "
        "term on logits reads the combined teachers",
    )

    @property
    def slot(self) -> Slot:
        """The place in a config whose losses fit: ``match`` with layers, otherwise ``kd``."""
        return "kd" if self.layer_S is None else "match"

    @model_validator(mode="after")
    def _loss_exists(self) -> Self:
        try:
            losses.check(self.loss, slot=self.slot)
        except KdplugError as error:
            raise error.at("loss") from None
        return self

    @model_validator(mode="after")
    def _layers_pair_up(self) -> Self:
        if (self.layer_S is None) is not (self.layer_T is None):
            missing, given = ("layer_S", "layer_T") if self.layer_S is None else ("layer_T", "layer_S")
            raise ConfigError(f"is required, since {given} is set. For a loss on logits, remove {given}").at(missing)
        if self.layer_S is None or self.layer_T is None:
            for key in _ONLY_ON_FEATURES:
                if key in self.model_fields_set and getattr(self, key) is not None:
                    raise ConfigError("has no effect without layer_S and layer_T").at(key)
            return self
        check_pair(self.layer_T, self.layer_S, equal=False)  # the loss declares whether their lengths may differ
        if "feature" not in self.model_fields_set and not all(
            map(is_path, (*in_list(self.layer_T), *in_list(self.layer_S)))
        ):
            raise ConfigError(FEATURE_REQUIRED).at("feature")
        return self

    _scales = model_validator(mode="after")(scales_something)

    @model_serializer(mode="wrap")
    def _without_empty_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys without a value, and those of features for a loss on logits."""
        unused = _ONLY_ON_FEATURES if self.layer_S is None else ()
        return {key: value for key, value in write(self).items() if value is not None and key not in unused}

    @property
    def own_keys(self) -> frozenset[str]:
        """The keys of the temperature that the term sets itself."""
        return frozenset(key for key in _DEFAULTED if getattr(self, key) is not None)

    @classmethod
    def of_match(cls, match: IntermediateMatch) -> Self:
        """Return an intermediate match as a term."""
        return cls(**{key: getattr(match, key) for key in match.model_fields_set})

    def default_name(self) -> str:
        """Return the name of the term if none is given: ``kl``, ``kl_head_1_0`` or ``hidden_hidden_mse_2_4``."""
        loss = self.loss.name.rpartition(":")[2]
        teacher = "" if self.teacher is None else f"_teacher_{self.teacher}"
        if self.layer_S is not None and self.layer_T is not None:
            return f"{self.feature}_{loss}_{_joined(self.layer_S)}_{_joined(self.layer_T)}{teacher}"
        heads = [head for head in (self.head_S, self.head_T) if head is not None]
        return "_".join([loss, *(["head", *map(str, heads)] if heads else [])]) + teacher


_LOGITS = frozenset({"student_logits", "teacher_logits", "teacher_sparse"})


def compares_logits(term: TermConfig, inputs: Iterable[str]) -> bool:
    """Return whether a term whose loss requests ``inputs`` compares logits: without layers, unless it names all that it reads."""
    requested = set(inputs)
    reads_named_only = not requested.isdisjoint(NAMED) and requested.isdisjoint(_LOGITS)
    return term.slot == "kd" and not reads_named_only


def _joined(layers: Layers) -> str:
    return "-".join(map(str, in_list(layers)))


_BELOW_A_TERM = frozenset({*TermConfig.model_fields, "student", ""})
"""First parts of fields that belong to one term: its keys, and the outputs that it reads of a model."""


@dataclass(frozen=True, slots=True)
class TermPlace:
    """Place of a term in a config: its keys are below ``path``, some under another name."""

    path: tuple[object, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    """Keys of the distillation that the term sets itself."""

    def key(self, name: str) -> str:
        """Return the name of a term's key in the config."""
        return self.renamed.get(name, name)

    def locate(self, error: KdplugError) -> KdplugError:
        """Complete the field of an error, which starts with a key of the term, and return the error."""
        head, dot, rest = error.field.partition(".")
        if head not in _BELOW_A_TERM or (head in _DEFAULTED and head not in self.own):
            return error
        error.field = f"{self.key(head)}{dot}{rest}"
        return error.at(*self.path)

    def note(self, error: Exception, owner: str, *, lacks_labels: bool = False, hint: str = "") -> None:
        """Add a note that names the term to an exception of its loss, which is not a ``KdplugError``."""
        causes = ["the student's adaptor returned no labels"] * lacks_labels + [hint] * bool(hint)
        cause = f": {'. '.join(causes)}" if causes else ""
        error.add_note(f"in {'.'.join(map(str, (*self.path, self.key('loss'))))} ({owner}){cause}")

    @contextmanager
    def located(self) -> Iterator[None]:
        """Complete the field of an error that is raised in the block."""
        try:
            yield
        except KdplugError as error:
            raise self.locate(error) from error.__cause__


WRITTEN_AS_TERM = ("terms",)
"""Start of the path of a term that is written as one, not by a shorter spelling."""

KD_PLACE = TermPlace(
    renamed={"loss": "kd_loss_type", "weight": "kd_loss_weight", "weight_scheduler": "kd_loss_weight_scheduler"}
)
"""TextBrewer's keys of the kd loss."""


HARD_LABEL_PLACE = TermPlace(renamed={"weight": "hard_label_weight"})
"""The key of the hard label term."""


class WrittenTerm(NamedTuple):
    """A term of a config, with its name, and where the config writes it."""

    config: TermConfig
    name: str
    place: TermPlace


def named_terms(terms: Sequence[tuple[TermConfig, TermPlace]], taken: Iterable[str] = ()) -> tuple[WrittenTerm, ...]:
    """Name each term: its own name or a default one, unique among all terms and ``taken``."""
    given = [term.name for term, _ in terms if term.name is not None]
    defaults = (term.default_name() for term, _ in terms if term.name is None)
    free = iter(unique(defaults, [KD_LOSS, HARD_LABEL_LOSS, *given, *taken]))
    return tuple(WrittenTerm(term, term.name or next(free), place) for term, place in terms)


def unique(names: Iterable[str], reserved: Iterable[str]) -> list[str]:
    """Return the names in order, with ``_2``, ``_3``… appended to names that are reserved or already used."""
    taken = set(reserved)
    found = []
    for name in names:
        free, number = name, 1
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        taken.add(free)
        found.append(free)
    return found
