"""Marks at settings: a field without one is refused by name, and its rule is checked with the field named."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from refadgen.config.marks import Decides, Section, setting, settings_of


def test_a_setting_without_a_mark_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"^sampling\.sharpness: a setting without a mark; write sharpness: … = "):

        @dataclass(frozen=True, kw_only=True)
        class _Sampling(Section, name="sampling"):
            steps: int = setting(20, Decides.PIXELS)
            sharpness: float = 0.0


@pytest.mark.parametrize("default", [field(default=3), field(default_factory=int)])
def test_a_plain_dataclass_field_is_no_mark(default: int) -> None:
    with pytest.raises(TypeError, match=r"^sampling\.sharpness: a setting without a mark"):
        type("_Sampling", (Section,), {"__annotations__": {"sharpness": int}, "sharpness": default}, name="sampling")


def test_a_section_that_is_none_is_refused_by_name() -> None:
    """A plain dataclass would bring settings without marks into a configuration."""

    @dataclass(frozen=True)
    class _Plain:
        sharpness: float = 0.0

    with pytest.raises(TypeError, match=r"^_Config\.sampling: a setting without a mark"):

        @dataclass(frozen=True, kw_only=True)
        class _Config(Section):
            sampling: _Plain = field(default_factory=_Plain)


@pytest.mark.parametrize(
    "decides", [Decides(0), Decides.ALWAYS_HASHED, Decides.RUN | Decides.ALWAYS_HASHED, Decides.RUN | Decides.PIXELS]
)
def test_a_mark_that_says_nothing_or_two_things_is_refused(decides: Decides) -> None:
    with pytest.raises(AssertionError):
        setting(1, decides)


@dataclass(frozen=True, kw_only=True)
class _Sample(Section, name="sample"):
    both: int = setting(2, Decides.RUN, least=1, most=10)
    least: int = setting(2, Decides.RUN, least=2)
    none_or_more: int = setting(2, Decides.RUN, least=0)
    above: float = setting(0.5, Decides.RUN, above=0)
    above_most: float = setting(0.5, Decides.RUN, above=0, most=4)
    between: float | None = setting(None, Decides.RUN, above=0, below=1)
    below: float = setting(0.5, Decides.RUN, least=0, below=1)
    eights: int | None = setting(64, Decides.RUN, multiple_of=8, least=64, most=128)
    choice: Literal["a", "b"] = setting("a", Decides.RUN)
    pair: tuple[float, float] = setting((0.0, 1.0), Decides.RUN, least=0, most=2)
    word: str = setting("ab", Decides.RUN, pattern="[ab]+", rule="of a and b")
    anything: str = setting("", Decides.RUN)


@pytest.mark.parametrize(
    ("name", "wrong", "rule"),
    [
        ("both", 0, "1 to 10"),
        ("both", 11, "1 to 10"),
        ("least", 1, "at least 2"),
        ("none_or_more", -1, "0 or more"),
        ("above", 0.0, "above 0"),
        ("above", float("nan"), "above 0"),
        ("above_most", 5.0, "above 0, at most 4"),
        ("between", 1.0, "between 0 and 1"),
        ("below", 1.0, "0 to below 1"),
        ("below", float("nan"), "0 to below 1"),
        ("eights", 100, "a multiple of 8, 64 to 128"),
        ("choice", "c", "one of a, b"),
        ("pair", (0.5, 0.4), "two numbers, 0 ≤ lowest ≤ highest ≤ 2"),
        ("pair", (0.5, 2.1), "two numbers, 0 ≤ lowest ≤ highest ≤ 2"),
        ("pair", (0.5,), "two numbers, 0 ≤ lowest ≤ highest ≤ 2"),
        ("word", "abc", "of a and b"),
    ],
)
def test_a_value_that_breaks_the_rule_is_named(name: str, wrong: object, rule: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 — all of the message is compared
        _Sample(**{name: wrong})  # type: ignore[arg-type] # wrong on purpose
    assert str(caught.value) == f"sample.{name}={wrong!r}: must be {rule}"


def test_values_at_their_bounds_and_none_pass() -> None:
    _Sample(both=1, least=2, none_or_more=0, above_most=4.0, below=0.0, eights=128, pair=(0, 2), anything="c")
    _Sample(between=None, eights=None)
    assert [each.name for each in settings_of(_Sample)][:2] == ["both", "least"]
