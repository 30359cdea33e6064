"""How a task, a partition, an algorithm, an averaging rule or a topology of one's own is named.

    path/to/file.py:Name        package.module:Name        file.py:Name:share=0.3:steps=4

What comes behind the name are settings of its own. None of it needs quotes on a command line.
"""

from dataclasses import dataclass

FORM = "package.module:{0} or path/to/file.py:{0}"


@dataclass(frozen=True)
class PluginName:
    """place: a module's name, or the path of a file. settings: names with their values as text."""

    place: str
    name: str
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> str:
        """The file's path, "" of a module."""
        return self.place if self.place.endswith(".py") else ""


def parse(text: str) -> PluginName | None:
    """What `text` names; None if it has not the form of such a name."""
    settings: list[tuple[str, str]] = []
    rest, _, last = text.rpartition(":")
    while rest and "=" in last:
        name, _, value = last.partition("=")
        settings.insert(0, (name, value))
        rest, _, last = rest.rpartition(":")
    found = PluginName(rest, last, tuple(settings))
    importable = all(part.isidentifier() for part in rest.split("."))
    named = [last, *(name for name, _ in settings)]
    return found if (found.path or importable) and all(n.isidentifier() for n in named) else None


def path_of(text: str) -> str:
    """The file that `text` names, "" if it names none."""
    found = parse(text)
    return found.path if found else ""
