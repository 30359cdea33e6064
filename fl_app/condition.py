"""What must be so for a configuration key to have an effect, in words and as a test."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Value = str | int | float | bool
Values = Mapping[str, Value]  # of all keys, what is automatic as what it has become


def shown(value: Value) -> str:
    """As one types it."""
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


@dataclass(frozen=True)
class Condition:
    """What must be so: `text` as one would type it, `keys` on which it depends."""

    text: str
    keys: tuple[str, ...]
    holds: Callable[[Values], bool]

    def __and__(self, other: "Condition") -> "Condition":
        return Condition(
            f"{self.text} with {other.text}",
            (*self.keys, *other.keys),
            lambda values: self.holds(values) and other.holds(values),
        )

    def __or__(self, other: "Condition") -> "Condition":
        return Condition(
            f"{self.text}, or {other.text}",
            (*self.keys, *other.keys),
            lambda values: self.holds(values) or other.holds(values),
        )


def when(key: str, *choices: Value) -> Condition:
    """`key` has one of these values."""
    *most, last = (shown(choice) for choice in choices)
    text = f"{key}={', '.join(most)} or {last}" if most else f"{key}={last}"
    return Condition(text, (key,), lambda values: values[key] in choices)


def other_than(key: str, *choices: Value) -> Condition:
    text = f"{key} other than {' and '.join(map(shown, choices))}"
    return Condition(text, (key,), lambda values: values[key] not in choices)


def above(key: str, least: int) -> Condition:
    return Condition(f"{key} above {least}", (key,), lambda values: float(values[key]) > least)
