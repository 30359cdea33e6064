"""The page as one HTML file: markup, style, scripts and, frozen into a report, the data of a run.

The files of the page do not travel in Flower's bundle, which takes Python and data alone: where a
bundle runs, they come from the installation that runs it.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fl_app.provenance import installed
from strategies.errors import RunDirectoryError

_HERE = Path(__file__).parent
_SCRIPTS = (
    "vendor/uPlot.iife.min.js", "dom.js", "charts.js", "timeline.js", "topology.js", "page.js",
)  # fmt: skip
_STYLES = ("vendor/uPlot.min.css", "page.css")


def page(document: Mapping[str, Any] | None = None) -> str:
    """The page with `document` (see `snapshot`) frozen in, or, without one, that asks the server.

    It loads nothing, and its policy forbids it to: what runs is what is named by its hash.

    Raises NoPageError where the files of the page are not.
    """
    place = assets()
    scripts = [_read(place, name) for name in _SCRIPTS]
    policy = (
        "default-src 'none'; connect-src 'self'; img-src 'self' data:; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'; script-src " + " ".join(map(_hash, scripts))
    )
    # In a script element no markup is read but its end.
    data = "" if document is None else json.dumps(document, allow_nan=False).replace("<", "\\u003c")
    parts = {
        "policy": policy,
        "title": html.escape(str((document or {}).get("name", "edge-fl"))),
        "style": "\n".join(_read(place, name) for name in _STYLES),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
        "data": data,
    }
    first, *rest = _read(place, "page.html").split("@")
    # Of "text@name@text@name@text" every second piece is a name.
    return first + "".join(parts[piece] if k % 2 == 0 else piece for k, piece in enumerate(rest))


class NoPageError(RunDirectoryError):
    """The files of the page are not on this machine."""


@cache
def assets() -> Path:
    """The directory with the page's files. NoPageError."""
    elsewhere = [root / "fl_app" / "record" / "page" for root in installed()]
    for place in (_HERE, *elsewhere):
        if (place / "page.html").is_file():
            return place
    raise NoPageError(
        "the files of the page are not on this machine: a bundle of Flower does not have them; "
        "`edge-fl report RUN` makes the report where edge-fl is installed"
    )


@cache
def _read(place: Path, name: str) -> str:
    return (place / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
