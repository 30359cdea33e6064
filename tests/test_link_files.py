"""Files that a device lacks: asked for piece by piece, kept by their hash, sent once."""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from client_apps.session_worker import _lacking
from fl_app.config import defaults
from fl_app.data import embedded
from strategies.errors import DataError, EdgeFlError
from strategies.link import files, keys, pieces
from strategies.link.files import Files, fetch
from strategies.link.pieces import PIECE, PieceServer
from strategies.link.wire import encode
from tests.wire_loop import Loop

RUN = "0123456789abcdef"
CONTENT = os.urandom(2 * PIECE + 1000)  # cannot be compressed: three pieces
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(CONTENT)
    return tmp_path / "source"


def serve(loop: Loop, source: Path) -> PieceServer:
    known = Files(lambda name: source if name == "known" else None)
    return PieceServer(loop, RUN, lambda device, name: known.content(name))


def ask(loop: Loop, target: Path, name: str = "known", digest: str = DIGEST) -> None:
    fetch(loop, RUN, "ann", {name: (target, digest)})


def test_a_file_comes_whole_in_pieces(source: Path, tmp_path: Path) -> None:
    loop = Loop()
    server = serve(loop, source)
    ask(loop, tmp_path / "deep" / "target")
    assert (tmp_path / "deep" / "target").read_bytes() == CONTENT
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "target"]
    assert [key for key, _ in loop.published].count(keys.piece(RUN, "ann")) == 3
    assert len(CONTENT) < server.sent["ann"] < 1.01 * len(CONTENT)
    assert list(server.sent) == ["ann"]


def test_text_is_compressed(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(content := b"a line of text\n" * 100_000)
    loop = Loop()
    server = serve(loop, tmp_path / "text")
    ask(loop, tmp_path / "target", digest=hashlib.sha256(content).hexdigest())
    assert server.sent["ann"] < 0.1 * len(content)


def test_what_gets_lost_is_one_piece(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_ASK_SECONDS", 0.05)
    monkeypatch.setattr(pieces, "_LOOK_SECONDS", 0.01)
    lost = {3, 4, 7}  # of the messages in either direction
    loop = Loop(lambda key, payload: len(loop.published) in lost)
    serve(loop, source)
    ask(loop, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == CONTENT
    assert [key for key, _ in loop.published].count(keys.piece(RUN, "ann")) <= 3 + len(lost)


def test_what_is_not_what_was_asked_for_is_refused(source: Path, tmp_path: Path) -> None:
    loop = Loop()
    serve(loop, source)
    with pytest.raises(EdgeFlError, match="another known than the one of this code"):
        ask(loop, tmp_path / "target", digest="0" * 64)
    with pytest.raises(EdgeFlError, match="has no other"):
        ask(loop, tmp_path / "target", name="other")
    assert not (tmp_path / "target").exists()


def test_a_server_that_is_silent_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(files, "_PATIENCE_SECONDS", 0.1)
    with pytest.raises(EdgeFlError, match="known does not come from the server: nothing"):
        ask(Loop(), tmp_path / "target")


def test_a_full_disk_is_named(source: Path, tmp_path: Path) -> None:
    loop = Loop()
    serve(loop, source)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(EdgeFlError, match="file/target cannot be written"):
        ask(loop, tmp_path / "file" / "target")


@pytest.mark.parametrize(
    "payload",
    [
        b"none",
        encode("beat", {"name": "known", "begin": 0}, {}),
        encode("want", {"name": 3, "begin": 0}, {}),
        encode("want", {"name": "known", "begin": -1}, {}),
        encode("want", {"name": "known", "begin": True}, {}),
        encode("want", {"name": "../source"}, {}),
    ],
)
def test_what_is_no_question_is_not_answered(source: Path, payload: bytes) -> None:
    loop = Loop()
    server = serve(loop, source)
    loop.publish(keys.want(RUN, "ann"), payload)
    assert server.sent == {}


def test_files_are_compressed_once_whatever_else_is_asked_for(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the time in which nobody else is heard."""
    compressed: list[Path] = []
    monkeypatch.setattr(files, "_compressed", lambda path: compressed.append(path) or b"content")
    loop = Loop()
    serve(loop, source)
    for n in range(10):
        name = f"none-{n}" if n % 2 else "known"
        loop.publish(keys.want(RUN, f"pi-{n}"), encode("want", {"name": name, "begin": 0}, {}))
    assert len(compressed) == 1


def test_who_asks_all_the_time_is_not_answered_all_the_time(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_MOST_A_SECOND", 20)
    loop = Loop()
    serve(loop, source)
    for _ in range(1000):
        loop.publish(keys.want(RUN, "ann"), encode("want", {"name": "known", "begin": 0}, {}))
    answers = [key for key, _ in loop.published].count(keys.piece(RUN, "ann"))
    assert 0 < answers < 200  # on a machine that may be slow


# --------------------------------------------------------------------------- the embedded images


def test_the_hashes_are_those_of_the_files() -> None:
    for name, digest in embedded.FILES.items():
        assert hashlib.sha256((embedded.DIRECTORY / name).read_bytes()).hexdigest() == digest


FASHION = ["fashion-mnist-train.jsonl", "fashion-mnist-test.jsonl"]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An app without its images, on a machine on which nothing else is; the real ones."""
    real = embedded.DIRECTORY
    monkeypatch.setattr(embedded, "DIRECTORY", tmp_path / "app" / "embedded")
    monkeypatch.setattr(embedded, "sys", SimpleNamespace(path=[]))
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path / "home"))
    return real


def test_images_are_found_where_they_came_to_and_where_the_app_is_installed(bare: Path) -> None:
    name = "fashion-mnist-test.jsonl"
    assert embedded.find(name) is None
    with pytest.raises(DataError, match=r"test\.jsonl .* not on this machine.*sessions=off"):
        embedded._read("test")
    fetch_it = Loop()
    known = Files(lambda asked: bare / asked)
    PieceServer(fetch_it, RUN, lambda device, name: known.content(name))
    fetch(fetch_it, RUN, "ann", {name: (embedded.kept(name), embedded.FILES[name])})
    assert embedded.find(name) == embedded.kept(name)
    assert len(embedded._read("test").labels) == 1000
    embedded.kept(name).write_bytes(b"damaged")
    assert embedded.find(name) is None
    embedded.sys.path.append(str(bare.parents[2]))
    assert embedded.find(name) == bare / name


@pytest.mark.parametrize(
    ("config", "node", "asks"),
    [
        ({}, {}, FASHION),
        ({"mode": "consensus"}, {}, FASHION),
        ({"mode": "consensus"}, {"data-path": "/own"}, FASHION),  # to be evaluated
        ({}, {"data-path": "/own"}, []),
        ({"dataset": "mnist"}, {}, []),
        ({"dataset": "files", "data-path": "/set"}, {}, []),
        ({"task": "text"}, {"data-path": "/own"}, ["python-topics.jsonl"]),
        ({"task": "text", "data-path": "/set"}, {}, []),
        ({"task": "tables", "table": "diabetes"}, {}, ["diabetes.jsonl"]),
        ({"task": "tables", "data-path": "/set"}, {}, []),
        ({"task": "my.tasks:Ecg"}, {}, []),
    ],
)
def test_a_device_asks_for_what_it_reads(
    bare: Path, config: dict, node: dict, asks: list[str]
) -> None:
    errand = {
        "application": "fl_app.device",
        "run_config": {**defaults(), **config},
        "node_config": node,
    }
    assert set(_lacking(errand)) == set(asks)
    for name in embedded.FILES:
        embedded.kept(name).parent.mkdir(parents=True, exist_ok=True)
        embedded.kept(name).write_bytes((bare / name).read_bytes())
    assert _lacking(errand) == {}
