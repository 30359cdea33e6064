"""Every block of README and docs that shows commands or Python does what it says: it is run here,
page by page and in order, with runs of a few steps in this process, or it says why it is not:

    <!-- not run: the reason -->                    before a block
    <!-- not run [part of a line]: the reason -->   before a block of which some lines are not run
"""

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from fl_app import cli
from fl_app.config import resolve, with_effect
from fl_app.launch import run as launching
from fl_app.launch import signals, surroundings
from fl_app.manage import execute
from fl_app.record.books import recorded
from fl_app.strategy import strategy_of
from fl_app.watch import server
from tests.fake_grid import FakeGrid
from tests.forked import forked

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
_BLOCK = re.compile(
    r"((?:^<!-- [^\n]* -->\n+)*)^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(r"<!-- not run(?: \[(.+?)\])?: .+ -->")
_COMMAND = re.compile(r"^    (?:edge-fl|make|flwr|pip|python3?|uv|sudo) ", re.MULTILINE)

# What makes any run a short one.
SHORT: dict[str, Any] = {
    "num-server-rounds": 2, "local-steps": 1, "batch-size": 8, "evaluate-examples": 20,
    "small-width": 2, "large-width": 4, "proxy-examples": 60, "validation-examples": 20,
    "distill.reverse-steps": 1, "distill.forward-steps": 1, "distill.batch-size": 8,
    "distill.references": "", "round-timeout": 60.0,
    "consensus.steps": 12, "consensus.window": 6, "consensus.references": "", "consensus.settle": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    marks: tuple[str, ...]  # parts of lines that are not run; "" of all

    @property
    def lines(self) -> list[str]:
        """Its commands, but for those that are not run."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if not any(mark in line for mark in self.marks)]


def blocks(page: Path) -> Iterator[Block]:
    for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield Block(found[2], found[3], tuple(part or "" for part in _MARK.findall(found[1])))


def short(values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run as somebody asked for it, with few steps."""
    given = {**values, **SHORT}
    if values.get("small-model", "cnn6") != "cnn6":
        del given["small-width"]  # others cannot be so narrow
    return with_effect(given, place="simulation")


class Reader:
    """Somebody who does what a page says, in a folder and a home of their own."""

    def __init__(self, home: Path, runs: dict[str, Path]) -> None:
        self.home, self.made, self.copies = home, runs, 0
        (home / "ecg.py").write_text(
            next(b.text for b in blocks(ROOT / "docs" / "tasks.md") if "class Ecg" in b.text)
        )
        images = np.random.default_rng(0).integers(0, 256, (200, 28, 28), dtype=np.uint8)
        labels = np.arange(200) % 10
        np.savez(home / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        np.savez(home / "shard.npz", images=images, labels=labels)
        rows = "".join(f"{i % 7},{i % 5},{10.5 * (i % 7) + i / 99}\n" for i in range(300))
        (home / "houses.csv").write_text("rooms,age,price\n" + rows)
        colours = images[..., None].repeat(3, 3)[:, :, :, :]
        np.savez(home / "colours.npz", images=np.pad(colours, ((0, 0), (2, 2), (2, 2), (0, 0))),
                 labels=labels)  # fmt: skip

    # -- blocks -------------------------------------------------------------------------------

    def does(self, block: Block) -> None:
        if block.language == "python":
            self.runs(block.text)
            return
        for line in block.lines:
            words = shlex.split(self.filled_in(line), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words:
                self.types(words)

    def runs(self, code: str) -> None:
        if found := re.match(r"# (\w+\.py)\n", code):  # a file of an app: see test_library
            Path(found[1]).write_text(code)
            compile(code, found[1], "exec")
            return
        for name, options in (("global.safetensors", ()), ("model.onnx", ("--model", "small"))):
            if name in code and not Path(name).exists():
                kind = "onnx" if name.endswith("onnx") else "safetensors"
                self.types(["edge-fl", "export", self.run(), "--to", kind, "--out", name, *options])
        exec(compile(code, "<block>", "exec"), {"__name__": "block"})

    def types(self, words: list[str]) -> None:
        program, *rest = words
        if program == "cd":
            os.chdir(rest[0])
        elif program == ".":
            assert rest == [".venv/bin/activate"]
        elif program == "edge-fl":
            assert cli.main(rest) == 0, words
        else:
            raise AssertionError(f"{shlex.join(words)}: mark it, see the head of this file")

    def filled_in(self, line: str) -> str:
        """What is in capitals is the reader's."""
        line = line.replace("/abs/PATH", str(self.home / "own.npz")).replace(" OPTIONS", "")
        line = line.replace("SHARD dataset=cifar10", f"{self.home / 'colours.npz'} dataset=cifar10")
        line = line.replace("SHARD", str(self.home / "shard.npz")).replace(" [NAME ...]", "")
        line = line.replace("/srv/images.npz", str(self.home / "shard.npz"))
        line = line.replace("seed=S", "seed=0").replace("mail-precision=P", "mail-precision=int8")
        line = re.sub(r"\bPATH\b", str(self.home / "own.npz"), line)
        begun = line.startswith("edge-fl resume")
        mode = "consensus" if "node-" in line else "average" if begun else "distill"
        return re.sub(r"\bRUN\b", lambda _: self.run(mode, begun=begun), line)

    # -- runs ---------------------------------------------------------------------------------

    def run(self, mode: str = "distill", *, begun: bool = False) -> str:
        """The name of a run that is there. begun: it has not ended."""
        self.copies += 1
        name = f"there-{self.copies}"
        self.shortly({"mode": mode, "name": name}, interrupted=begun)
        return name

    def shortly(self, values: Mapping[str, Any], *, interrupted: bool = False) -> Path:
        """Run it with few steps, or take a copy of one that is the same but for its name."""
        own = {key: values.get(key, "") for key in ("name", "output", "resume")}
        kept = short({key: value for key, value in values.items() if key not in own})
        key = json.dumps({**kept, "seed": 0}, sort_keys=True)
        config = resolve({**kept, **{k: v for k, v in own.items() if v}})
        if key in self.made and own["name"] and not own["resume"] and not interrupted:
            path = self.home / "edge-fl" / "runs" / own["name"]
            shutil.rmtree(path, ignore_errors=True)  # what was reserved for it
            shutil.copytree(self.made[key], path)
            (path / "config.json").write_text(json.dumps(config.flat()))
            return path
        torch.set_num_threads(1)
        grid = (Interrupted if interrupted else FakeGrid)(config.flat(), nodes=1)
        end = pytest.raises(KeyboardInterrupt) if interrupted else nullcontext()
        with end, forked(), recorded(config) as directory:
            strategy_of(config, directory).start(grid)
        if interrupted:
            return self.home / "edge-fl" / "runs" / own["name"]
        self.made.setdefault(key, directory.path)
        return directory.path

    def instead_of_flower(self, overrides: Mapping[str, Any], *others: Any) -> int:
        interrupted = overrides.get("name") == "killed" and not overrides.get("resume")
        others[-1].end(self.shortly(overrides, interrupted=interrupted))
        return 0


class Interrupted(FakeGrid):
    """With Ctrl-C in the second round."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if any(message.metadata.group_id == "2" for message in messages):
            raise KeyboardInterrupt
        return super().push_messages(messages)


@pytest.fixture(scope="module")
def made() -> dict[str, Path]:
    """Short runs by what they are of."""
    return {}


@pytest.fixture
def reader(
    tmp_path: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reader]:
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path / "edge-fl"))
    monkeypatch.chdir(tmp_path)
    found = Reader(tmp_path, made)
    monkeypatch.setattr(launching, "_run_to_the_end", found.instead_of_flower)
    monkeypatch.setattr(signals, "heed", lambda _: None)
    monkeypatch.setattr(surroundings, "settle", lambda: None)
    monkeypatch.setattr(server, "serve", lambda feeds, listener: None)  # it ends with Ctrl-C
    monkeypatch.setattr("webbrowser.open", lambda _: True)

    def one_by_one(plan: list[Any], _parallel: int, say: Callable[[str], object], _: Any) -> int:
        for each in plan:
            if each.state == "missing":
                found.shortly({**each.config, "name": each.name})
        return 0

    monkeypatch.setattr(execute, "execute", one_by_one)
    yield found
    monkeypatch.undo()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_is_run(page: Path, reader: Reader) -> None:
    pytest.importorskip("cryptography")
    for block in blocks(page):
        try:
            reader.does(block)
        except BaseException as error:
            error.add_note(f"in the block:\n{block.text}")
            raise


def test_commands_are_in_blocks_and_a_mark_is_of_one() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        outside = _BLOCK.sub("", text)
        assert not _COMMAND.findall(outside), f"{page.name}: commands are in ```sh"
        assert "<!-- not run" not in outside, f"{page.name}: a mark is just before its block"
        for block in blocks(page):
            for mark in block.marks:
                assert mark in block.text, f"{page.name}: no line with {mark!r}"


def test_a_new_command_without_a_mark_is_not_passed_over(reader: Reader) -> None:
    with pytest.raises(AssertionError, match=r"curl hub\.example: mark it"):
        reader.does(Block("sh", "curl hub.example\n", ()))
    with pytest.raises(AssertionError):
        reader.does(Block("sh", "edge-fl run seeed=1\n", ()))
    reader.does(Block("sh", "curl hub.example\nedge-fl config\n", ("hub.example",)))
