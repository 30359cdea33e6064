"""README and docs: the site builds without a warning, and what people are told to type is right."""

import contextlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_app.cli import parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "experiments" / "README.md", *sorted(ROOT.glob("docs/*.md"))]
# What is written in capitals is for the reader to fill in; all of it parses but for numbers.
_BLOCK = re.compile(r"^```sh\n(.*?)^```|((?:^    \S.*\n)+)", re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of a block of the pages: (page, words), without comments, `sudo` and variables
    in front."""
    for page in PAGES:
        for block in _BLOCK.finditer(page.read_text(encoding="utf-8")):
            for line in (block[1] or block[2]).replace("\\\n", " ").splitlines():
                with contextlib.suppress(ValueError):  # a formula, or output
                    words = shlex.split(line, comments=True)
                    while words and (words[0] == "sudo" or re.fullmatch(r"[A-Z_]+=\S*", words[0])):
                        words = words[1:]
                    if words:
                        yield page.name, words


def named(program: str) -> list[list[str]]:
    return [words[1:] for _, words in commands() if words[0].rpartition("/")[2] == program]


def test_edge_fl_takes_every_command_of_the_pages() -> None:
    found = named("edge-fl")
    assert len(found) > 20
    for words in found:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "exit", lambda status, words=words: pytest.fail(f"{words}"))
            parser().parse_known_args([word.rstrip(",") for word in words])


def test_make_has_every_target_of_the_pages() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    found = {word for words in named("make") for word in words if re.fullmatch("[a-z-]+", word)}
    assert {"run", "test"} <= found <= targets


def test_every_module_that_the_pages_run_is_there() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    found = set(re.findall(r"python -m ((?:experiments|fl_app)[\w.]*)", text))
    assert len(found) > 5
    assert [name for name in sorted(found) if importlib.util.find_spec(name) is None] == []


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs Sphinx: make setup")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    built = subprocess.run(
        [*command, "-d", tmp_path / "doctrees", ROOT / "docs", tmp_path / "site"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (built.returncode, built.stderr) == (0, "")
    pages = {page.stem: page.read_text(encoding="utf-8") for page in tmp_path.glob("site/*.html")}
    assert 'href="consensus.html' in pages["index"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r'<img [^>]*src="([^"]+)"', pages["index"])
    assert len(shown) == len(re.findall(r"^!\[", readme, re.MULTILINE))
    assert all((tmp_path / "site" / picture).is_file() for picture in shown)
    for page in ROOT.glob("docs/*.md"):  # none is covered by a file of another folder
        if page.stem not in ("index", "experiments"):
            assert page.read_text(encoding="utf-8").split("\n", 1)[0][2:] in pages[page.stem]
