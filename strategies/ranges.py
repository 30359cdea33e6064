"""The valid values of a setting: a field has them in its annotation, and they are checked where a
configuration is read."""

import math
from typing import Any

from strategies.errors import ConfigError
from strategies.plugin_name import FORM, parse

SWITCH = ("auto", "off", "on")


class OneOf:
    """The valid values of a text."""

    def __init__(self, *choices: str) -> None:
        self.choices = sorted(choices)

    def check(self, key: str, value: Any) -> None:
        if value not in self.choices:
            choices = ", ".join(self.choices)
            raise ConfigError(f"{key}={value!r} is unknown; choose one of: {choices}")

    def __str__(self) -> str:
        return ", ".join(self.choices)


class OneOfOrOwn(OneOf):
    """The valid values of a text that names something of the app, or of somebody's own.

    what: "Class" or "function". prefix: of names of another kind, that are checked elsewhere.
    """

    def __init__(self, what: str, *choices: str, prefix: str = "") -> None:
        super().__init__(*choices)
        self.what, self.prefix = what, prefix

    def check(self, key: str, value: Any) -> None:
        if value in self.choices or (self.prefix and value.startswith(self.prefix)):
            return
        own = parse(value)
        if own is None:
            raise ConfigError(
                f"{key}={value!r} is unknown; choose one of: {', '.join(self.choices)}, or name "
                f"your own: {FORM.format(self.what)}"
            )
        if own.path and not own.path.startswith("/"):
            raise ConfigError(f"{key}={value!r} must be an absolute path: the app runs elsewhere")

    def __str__(self) -> str:
        return f"{super().__str__()}, or your own: {FORM.format(self.what)}"


# Where nothing else is said: no run needs more, and sums and products of such numbers are finite.
_MOST = 10**9


class Within:
    """A number in [least, most], or in (least, most] if `above`."""

    def __init__(self, least: float, most: float = _MOST, *, above: bool = False) -> None:
        self.least, self.most, self.above = least, most, above

    def check(self, key: str, value: Any) -> None:
        # Written so that NaN and infinity fail too.
        if not self.least <= value <= self.most or (self.above and value == self.least):
            lower = f"above {self.least}" if self.above else f"at least {self.least}"
            finite = not isinstance(value, float) or math.isfinite(value)
            raise ConfigError(
                f"{key}={value} must be {'' if finite else 'finite and '}{lower} and at most "
                f"{self.most}"
            )

    def __str__(self) -> str:
        most = f" to {self.most:g}" if self.most < _MOST else ""
        least = f"above {self.least:g}" if self.above else f"{self.least:g}"
        return f"{least}{most}" if most else f"{least}{'' if self.above else ' or more'}"


def words(text: str) -> tuple[str, ...]:
    """The parts of a text with commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
