"""Graphs that people write down: a line for each edge, or JSON."""

import json
import re
from collections.abc import Iterable
from typing import Any

_SHOWN = 6  # names that an error message lists
_LONGEST_NAME = 100


def parse_graph(text: str) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """Read the nodes' names and the edges from one of two forms.

    An edge list has a line "a b" for each edge, and comments after #; its nodes are in order of
    their names, with numbers in them by value. JSON is {"nodes": ["a", ...], "edges": [["a", "b"],
    ...]}, whose nodes are in the order in which they are listed.

    Raises ValueError for what is neither, for a name that is no node's or cannot be printed, for a
    node or an edge that is there twice, and for an edge from a node to itself.
    """
    ordered = text.lstrip().startswith("{")
    names, places = _parse_json(text) if ordered else _parse_lines(text)
    if not names:
        raise ValueError('the file has no nodes; write a line "a b" for each edge')
    for name in names:
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise ValueError(
                f"{_short(name)} can be no node's name: at most {_LONGEST_NAME} characters, all of "
                f"which can be printed"
            )
    if not ordered:
        names = sorted(names, key=_by_number)
    known, seen = set(names), set()
    for place, (a, b) in places:
        for name in (a, b):
            if name not in known:
                raise ValueError(f"{place}: {_short(name)} is not in nodes ({listed(names)})")
        if a == b:
            raise ValueError(f"{place}: an edge from {a!r} to itself; leave it out")
        if frozenset((a, b)) in seen:
            raise ValueError(f"{place}: the edge {a!r}, {b!r} is there twice; write it once")
        seen.add(frozenset((a, b)))
    return tuple(names), [edge for _, edge in places]


_Places = list[tuple[str, tuple[str, str]]]  # where in the file, and the two names of an edge


def _parse_lines(text: str) -> tuple[list[str], _Places]:
    places = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise ValueError(f"line {number}: {_short(line.strip())} must be two names, like: a b")
        places.append((f"line {number}", (words[0], words[1])))
    return list(dict.fromkeys(name for _, edge in places for name in edge)), places


def _parse_json(text: str) -> tuple[list[str], _Places]:
    form = '{"nodes": ["a", "b", ...], "edges": [["a", "b"], ...]}'
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the file is not JSON: {error}") from None
    if set(content) != {"nodes", "edges"} or not all(isinstance(v, list) for v in content.values()):
        raise ValueError(f"the file must look like {form}; it has the keys {listed(content)}")
    names, seen = content["nodes"], set()
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise ValueError(f"nodes[{number}]: {_short(name)} must be a name in quotes")
        if name in seen:
            raise ValueError(
                f"nodes[{number}]: {_short(name)} is there twice; give every node its own"
            )
        seen.add(name)
    places = []
    for number, edge in enumerate(content["edges"]):
        pair = isinstance(edge, list) and len(edge) == 2
        if not pair or not all(isinstance(name, str) for name in edge):
            raise ValueError(f'edges[{number}]: {_short(edge)} must be two names, like ["a", "b"]')
        places.append((f"edges[{number}]", (edge[0], edge[1])))
    return names, places


def _by_number(name: str) -> tuple[list[str | int], str]:
    """Sorts site2 before site10. Text and numbers take turns in the split, text first."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if k % 2 else part for k, part in enumerate(parts)], name


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """At most so many of the names that an error message stays readable."""
    names = list(names)
    return separator.join(map(_cut, names[:_SHOWN])) + (
        f"{separator}..." if len(names) > _SHOWN else ""
    )


def _short(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 2 * _LONGEST_NAME else f"{text[: 2 * _LONGEST_NAME]}..."
