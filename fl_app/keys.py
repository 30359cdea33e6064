"""The configuration's keys in words: what `edge-fl config` prints, and docs/keys.md.

All of it comes from where it decides: defaults and sentences from pyproject.toml, ranges from
`fl_app.config`, when a key has an effect from `fl_app.effects`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fl_app.config import MODES, range_of
from fl_app.effects import conditions_of, described
from strategies.errors import ConfigError
from strategies.pyproject import pyproject

_BEGIN = "[tool.flwr.app.config"


@dataclass(frozen=True)
class Key:
    """A key with its default as TOML has it; meaning: a sentence; extent: the values that it may
    have; effect: with what it has one, "" for always."""

    name: str
    default: str
    meaning: str
    extent: str
    effect: str


def keys() -> list[Key]:
    """All keys, in the order of pyproject.toml."""
    found = []
    for name, default, meaning in _lines(pyproject()):
        conditions = dict.fromkeys(each.text for each in conditions_of(name))
        found.append(Key(name, default, meaning, range_of(name), "; ".join(conditions)))
    return found


def printed(mode: str = "") -> list[str]:
    """The lines of `edge-fl config`. Raises ConfigError for a mode that there is not."""
    if mode and mode not in MODES:
        raise ConfigError(f"mode={mode!r} is unknown; choose one of: {', '.join(MODES)}")
    return described(pyproject(), mode)


def reference() -> str:
    """docs/keys.md."""
    text = [
        "# All keys",
        "",
        "Made by `edge-fl config --markdown > docs/keys.md` from the defaults in `pyproject.toml`,",
        "the ranges in `fl_app/config/` and the conditions in `fl_app/effects.py`. A key that is",
        "given where it has no effect is refused.",
    ]
    section = None
    for key in keys():
        of, dot, _ = key.name.partition(".")
        if (of if dot else "") != section:
            section = of if dot else ""
            text += ["", f"## {section or 'General'}", ""]
            text += [
                "| key | default | values | meaning | has an effect with |",
                "|---|---|---|---|---|",
            ]
        cells = (f"`{key.name}`", f"`{key.default}`", key.extent, key.meaning, key.effect)
        text.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(text) + "\n"


def _lines(text: str) -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) of every key; a meaning may go on in comments of lines below."""
    section: str | None = None
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith(("[", "# ---")):
            inside = line.startswith(_BEGIN)
            section = line.removeprefix(_BEGIN).partition("]")[0].lstrip(".") if inside else None
        elif section is not None and " = " in line and not line.startswith(" "):
            name, _, rest = line.partition(" = ")
            default, _, meaning = rest.partition("#")  # no default has one in it
            key = f"{section}.{name}" if section else name
            found.append([key, default.strip(), meaning.strip()])
        elif section is not None and line.lstrip().startswith("#") and line.startswith(" "):
            found[-1][2] += f" {line.lstrip('# ')}"
    yield from ((name, default, meaning) for name, default, meaning in found)
