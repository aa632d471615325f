"""The mark at the field of a setting: its default, its effect on results, its allowed values, the place it names.

    @dataclass(frozen=True, kw_only=True)
    class LayoutConfig(Section, name="layout"):
        size: float = setting(0.6, Decides.ONE_IMAGE, least=0.05, most=1.0)
        \"\"\"The field's documentation.\"\"\"

The mark decides whether the setting enters ids (see `identity`). A section with an unmarked field is refused on import.
"""

import dataclasses
import enum
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

T = TypeVar("T")
_KEY = "setting"


class Decides(enum.Flag):
    """The results that a setting decides. Sections that several jobs share combine them."""

    PIXELS = enum.auto()
    """The pixels of every image of a run. Enters each `image_id`."""
    ONE_IMAGE = enum.auto()
    """Which images a catalogue row asks for. Enters an `image_id` by that image's own prompt, seed or layout."""
    TRIPLETS = enum.auto()
    """The triplets of a data set. Enters `dataset.json`; all triplets of one output have the same."""
    STEPS = enum.auto()
    """The steps of a training. Enters the checkpoint's facts; a resumed training must have the same."""
    WEIGHTS = enum.auto()
    """The weights of a training from here on. Enters no identity: a resumed training may have another value."""
    RUN = enum.auto()
    """Only how the run goes: devices, actors, time limits. Also names of places whose contents enter an identity by a
    fingerprint. Enters no identity."""
    ALWAYS_HASHED = enum.auto()
    """Enters the identity at its default too. Only for settings that the first ids held: a setting that is added later
    stays out while it has its default, so that ids made before it stay as they are."""


_HASHED = Decides.PIXELS | Decides.ONE_IMAGE | Decides.TRIPLETS | Decides.STEPS


class Place(enum.Enum):
    """The kind of place that a setting names; see `paths.absolute_paths`."""

    PATH = enum.auto()
    """A local file or folder that exists."""
    PATH_OR_URI = enum.auto()
    """A local file or folder that exists, or an address in an object store."""
    NEW_PATH_OR_URI = enum.auto()
    """The same, but it need not exist yet."""
    MODEL = enum.auto()
    """A local folder, or a hub id."""
    MODEL_OR_FILE = enum.auto()
    """A local folder or ONNX file, or a hub id."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The mark of one field. A bound that is None does not apply."""

    decides: Decides
    least: float | None
    most: float | None
    above: float | None
    below: float | None
    multiple_of: int | None
    pattern: str | None
    rule: str
    place: Place | None

    def allows(self, value: Any) -> bool:
        """Whether a number or text obeys the rule."""
        if self.pattern is not None:
            return bool(re.fullmatch(self.pattern, value))
        # Each comparison asks for what is allowed, so that NaN, which compares to nothing, is refused.
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.multiple_of is None or value % self.multiple_of == 0)
        )

    @property
    def text(self) -> str:
        """The rule in words; empty: any value of the type."""
        if self.rule:
            return self.rule
        words = [] if self.multiple_of is None else [f"a multiple of {self.multiple_of}"]
        if self.least is not None and self.most is not None:
            words.append(f"{self.least} to {self.most}")
        elif self.above is not None and self.below is not None:
            words.append(f"between {self.above} and {self.below}")
        elif self.least is not None and self.below is not None:
            words.append(f"{self.least} to below {self.below}")
        else:
            if self.least is not None:
                words.append("0 or more" if self.least == 0 else f"at least {self.least}")
            if self.above is not None:
                words.append(f"above {self.above}")
            if self.most is not None:
                words.append(f"at most {self.most}")
        return ", ".join(words)


def setting(
    default: T,
    decides: Decides,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    multiple_of: int | None = None,
    pattern: str | None = None,
    rule: str = "",
    place: Place | None = None,
) -> T:
    """The field of a setting.

    least, most: bounds that are allowed. above, below: bounds that are not. Of a `tuple[float, float]` they hold for
    both numbers, and the first must not exceed the second. pattern: of the complete text, described by `rule`. Choices
    stand in the type: `Literal["jpeg", "png"]`.
    """
    assert decides & ~Decides.ALWAYS_HASHED, "say what the setting decides"
    assert Decides.ALWAYS_HASHED not in decides or decides & _HASHED, "ALWAYS_HASHED without an identity to enter"
    assert Decides.RUN not in decides or decides == Decides.RUN, "RUN beside another mark"
    mark = Setting(
        decides=decides,
        least=least,
        most=most,
        above=above,
        below=below,
        multiple_of=multiple_of,
        pattern=pattern,
        rule=rule,
        place=place,
    )
    return dataclasses.field(default=default, metadata={_KEY: mark})


def device_setting() -> str:
    """The field of a setting that names where networks run."""
    return setting("auto", Decides.RUN, pattern=r"auto|cpu|cuda(:\d+)?", rule="auto, cpu, cuda or cuda:N")


def require(ok: bool, field_name: str, value: object, rule: str) -> None:
    """Raises: ValueError naming the field, its value and the rule, unless `ok`."""
    if not ok:
        raise ValueError(f"{field_name}={value!r}: must be {rule}")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a configuration: marked fields, checked when it is made. A tree of sections is one too.

    A subclass names itself as error messages name it, and overrides `check` for rules between several fields.
    """

    _name: ClassVar[str] = ""

    def __init_subclass__(cls, *, name: str = "") -> None:
        """Raises: TypeError naming section and field where a field carries no mark."""
        super().__init_subclass__()
        cls._name = name
        # `dataclass` comes after this: the fields are still plain class attributes.
        for field_name, kind in inspect.get_annotations(cls, eval_str=True).items():
            default = cls.__dict__.get(field_name)
            marked = isinstance(default, dataclasses.Field) and _KEY in default.metadata
            if not marked and not (isinstance(kind, type) and issubclass(kind, Section)):
                raise TypeError(
                    f"{name or cls.__name__}.{field_name}: a setting without a mark; write {field_name}: … = "
                    "setting(DEFAULT, Decides.…) to say what it decides (refadgen/config/marks.py)"
                )

    def __post_init__(self) -> None:
        """Raises: ValueError naming the first field whose value breaks its rule."""
        for field, mark in settings_of(type(self)).items():
            _check(f"{self._name}.{written(field.name)}", getattr(self, field.name), field.type, mark)
        self.check()

    def check(self) -> None:
        """Rules between several fields. Raises: ValueError."""


def written(field_name: str) -> str:
    """The name of a setting as users write it: a field `class_` is `class`, which Python keeps for itself."""
    return field_name.removesuffix("_")


def settings_of(section: type[Section]) -> dict[dataclasses.Field[Any], Setting]:
    """The settings of a section, without the sections that lie in it, in their order."""
    return {field: field.metadata[_KEY] for field in dataclasses.fields(section) if _KEY in field.metadata}


def sections_of(config: Section) -> Iterator[tuple[str, Section]]:
    """The sections that lie in `config` itself, by field name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Section):
            yield field.name, value


def setting_of(section: type[Section], name: str) -> Setting:
    """The mark of one setting, for who repeats its range elsewhere."""
    return next(mark for field, mark in settings_of(section).items() if field.name == name)


def _check(name: str, value: Any, kind: Any, mark: Setting) -> None:
    """Raises: ValueError unless `value` is one of the type's choices and obeys the mark."""
    # Types themselves are checked where users' words come in, by `loading.build`.
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        options = typing.get_args(kind)
        if value is None or any(value in typing.get_args(o) for o in options if typing.get_origin(o) is Literal):
            return
        kind = next(option for option in options if option is not types.NoneType)
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        require(value in choices, name, value, f"one of {', '.join(choices)}")
    elif kind == tuple[float, float]:
        # A range to draw from; its bounds are always `least` and `most`.
        assert mark.least is not None
        assert mark.most is not None
        # By `type`, since a bool is an int to `isinstance`.
        numbers = isinstance(value, tuple) and len(value) == 2 and all(type(each) in (int, float) for each in value)
        ok = numbers and mark.least <= value[0] <= value[1] <= mark.most
        require(ok, name, value, f"two numbers, {mark.least:g} ≤ lowest ≤ highest ≤ {mark.most:g}")
    elif mark.text:
        require(mark.allows(value), name, value, mark.text)
