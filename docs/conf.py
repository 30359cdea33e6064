"""The documentation as a site: `make docs` writes it to site/ (Sphinx, furo, MyST)."""

import re
import tomllib
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_REPOSITORY = _PROJECT.get("urls", {}).get("Repository", "").rstrip("/")
# Pages that are other files of the repository, with what stands in docs/ behind them.
_ELSEWHERE = {"index": _ROOT / "README.md", "experiments": _ROOT / "experiments" / "README.md"}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")

project = _PROJECT["name"]
author = "the developers of edge-fl"
version = release = _PROJECT["version"]
extensions = ["myst_parser"]
myst_heading_anchors = 4
exclude_patterns = ["conf.py"]
html_theme = "furo"
html_title = "edge-fl"
html_show_sphinx = html_show_copyright = False
# No class of words is fetched for highlighting: `text` blocks are drawings and output.
highlight_language = "text"


def _fitted(_app: Any, name: str, source: list[str]) -> None:
    """What is written for the pages of the repository fits the site, too: links to files that are
    no pages of the site go to the repository, or are words alone where its address is not known."""
    page = _ELSEWHERE.get(name, _ROOT / "docs" / f"{name}.md")
    text = source[0]
    if name in _ELSEWHERE:
        _, _, contents = text.partition("```{toctree}")
        text = page.read_text(encoding="utf-8")
        text += f"\n```{{toctree}}{contents}" if contents else ""
    pages = {file: other for other, file in _ELSEWHERE.items()}

    def place(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return match.group()
        file, anchor = (page.parent / path).resolve(), f"#{anchor}" if anchor else ""
        if not file.exists():
            raise FileNotFoundError(f"docs: {name} links to {target}, which is not there")
        if file in pages:
            return f"{picture}[{words}](/{pages[file]}.md{anchor})"
        if file.is_relative_to(_ROOT / "docs"):
            return f"{picture}[{words}](/{file.relative_to(_ROOT / 'docs')}{anchor})"
        where = file.relative_to(_ROOT)
        if picture:  # it goes into the site
            return f"![{words}](../{where})"
        return f"[{words}]({_REPOSITORY}/blob/main/{where})" if _REPOSITORY else words

    source[0] = _LINK.sub(place, text)


def setup(app: Any) -> None:
    app.connect("source-read", _fitted)
