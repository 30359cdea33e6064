"""What people hand over, as any system writes it and however wrong: values, paths, small texts."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fl_app.assemble import topology_text
from fl_app.cli import main
from fl_app.config import PATH_KEYS, RunConfig, configure, defaults, resolve
from fl_app.launch import run as launch
from fl_app.launch.values import parse_assignments, toml_lines
from strategies.consensus.graph_file import parse_graph
from strategies.consensus.shared import topology_of
from strategies.errors import ConfigError, EdgeFlError
from strategies.paths import absolute, read_text

quick = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# ------------------------------------------------------------------------------------------- values

KEYS = sorted(defaults())
CHOICES = [
    "auto", "on", "off", "consensus", "average", "real", "buffered", "krum", "file", "files",
    "sync", "isolated", "pdmm-sgd", "dirichlet", "hf:X", "0.5", "/x", "crash:3@nan",
    "cut:0-1@1-inf",
]  # fmt: skip
NUMBERS = st.sampled_from([0, -1, 1, 2, 3, 10**6, 2**63, 10**400, 0.0, 1e-300, 1e308])
VALUES = st.one_of(
    st.sampled_from(CHOICES),
    NUMBERS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.lists(st.integers(), max_size=2),
)


@quick
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(), VALUES, max_size=8))
@example({"participants": False, "num-server-rounds": 10**400})
@example({"alpha": 10**400})
@example({"averaging": "krum", "num-malicious-nodes": 10**9, "fraction-train": 1e-300})
@example({"targets": "1e-400", "mode": "consensus"})
def test_whatever_the_values_are_the_answer_is_a_configuration_or_a_sentence(
    values: dict[str, Any],
) -> None:
    try:
        config = configure(values)
    except ConfigError:
        return
    assert resolve(config.flat()) == config


@quick
@given(st.lists(st.text() | st.sampled_from([f"{key}=1" for key in KEYS]), max_size=4))
@example([f"participants={'9' * 5000}"])
@example(["data-path=~nobody-of-that-name/x"])
@example(["data-path=\udcff"])
def test_whatever_the_words_are_the_answer_is_values_or_a_sentence(words: list[str]) -> None:
    try:
        values = parse_assignments(words)
    except ConfigError:
        return
    for key in PATH_KEYS:
        assert not values.get(key) or Path(str(values[key])).is_absolute()


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 2**63 - 1))
@example("/runs/ü/𝄞 😀", 1e-320, 0)
def test_values_arrive_as_they_were_given(text: str, number: float, whole: int) -> None:
    """Through TOML, which has no surrogates, paired or not."""
    try:
        name = resolve({"targets": "", "name": text}).name
    except ConfigError:
        return
    values = {"name": name, "alpha": number, "seed": whole, "allow-missing-classes": False}
    assert tomllib.loads("\n".join(toml_lines(values))) == values


def test_a_key_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^seed is given twice"):
        parse_assignments(["seed=1", "participants=3", "seed=2"])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("sinks=wandb,wandb", "sinks='wandb, wandb' names one twice"),
        (
            "mode=consensus clock=real consensus.carrier=zenoh",
            "consensus.carrier=zenoh is for devices",
        ),
        ("name=a/b", "name='a/b' must be the name of a directory"),
    ],
)
def test_what_can_be_known_before_is_not_found_out_later(
    words: str, complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "preflight", lambda config: pytest.fail("went on"))
    assert main(["run", *words.split()]) == 2
    assert capsys.readouterr().err.startswith(f"edge-fl: {complaint}")


def test_a_sink_that_is_not_installed_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fl_app.record.sinks.find_spec", lambda name: None)
    config = resolve({"sinks": "tensorboard", "output": str(tmp_path)})
    with pytest.raises(EdgeFlError, match=r"sinks='tensorboard' needs an optional package"):
        launch.check_output(config)


# -------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("key", PATH_KEYS)
def test_every_path_may_be_relative_or_from_home(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_assignments([f"{key}=here/x"]) == {key: str(tmp_path / "here/x")}
    assert parse_assignments([f"{key}=~/x"]) == {key: "/home/me/x"}
    assert parse_assignments([f"{key}="]) == {key: ""}


_PLACES = ("-file", "-path", "-profiles", "-root", "availability", "output", "replay", "resume")


def test_every_key_that_is_a_place_is_made_absolute() -> None:
    """A new one has to be on the list: these are the texts that name a file or a directory."""
    named = {key for key in KEYS if key.endswith(_PLACES)}
    assert named == set(PATH_KEYS)


def test_where_the_working_directory_is_gone_a_relative_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(
        ConfigError, match="path 'x' is relative to a working directory that is gone"
    ):
        absolute("x")
    assert absolute("/x") == Path("/x")


# -------------------------------------------------------------------------------------------- texts

LINES = "lab café\r\ncafé yard\r\n"


def with_file(path: Path) -> RunConfig:
    keys = {"mode": "consensus", "consensus.topology": "file", "participants": 3}
    return resolve({**keys, "consensus.topology-file": str(path)})


@pytest.mark.parametrize(
    "content",
    [
        LINES.encode(),
        LINES.encode("utf-8-sig"),  # Windows
        LINES.encode("utf-16"),  # "Unicode", in the words of its Notepad
        LINES.replace("\r\n", "\r").encode(),
        LINES.replace("\r\n", "\n").rstrip().encode(),
        LINES.replace("é", "e\u0301", 1).encode(),  # a Mac, once of two times
        b'\xef\xbb\xbf\r\n{"nodes": ["caf\xc3\xa9", "lab", "yard"],\r\n'
        b'"edges": [["caf\\u00e9", "lab"], ["cafe\xcc\x81", "yard"]]}',
    ],
)
def test_a_topology_file_is_read_as_any_editor_writes_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sites"
    path.write_bytes(content)
    config = with_file(path)
    topology = topology_of(
        config.consensus, config.participants, config.seed, topology_text(config)
    )
    assert topology.names == ("café", "lab", "yard")
    assert topology.edges == ((0, 1), (0, 2))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("café yard".encode("latin-1"), "it is no text in UTF-8: invalid continuation byte"),
        (b"\xff\xfea", "it is no text in UTF-16: truncated data"),
        (bytes(1 << 24) + b"x", "it has more than 16 MiB"),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "sites"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"topology-file='{path}' cannot be read: {complaint}"):
        topology_text(with_file(path))


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match=r"^it is no file$"):
            read_text(path)
    with pytest.raises(ConfigError, match=r"^Is a directory$"):
        read_text(tmp_path)
    with pytest.raises(ConfigError, match="embedded null byte"):
        read_text("a\0b")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"nodes":' + "[" * 100_000, "the file is not JSON: maximum recursion depth exceeded"),
        ("1 " + "9" * 6000, "can be no node's name: at most 100 characters"),
        ("a\x1b[31m b", "can be no node's name: at most 100 characters"),
        ('{"nodes": ["\\ud800"], "edges": []}', "can be no node's name: at most 100 characters"),
        ('{"' + "k" * 10_000 + '": 1}', "the file must look like"),
        ('{"nodes": [' + "[" * 500 + "]" * 500 + '], "edges": []}', "must be a name in quotes"),
        ("word" * 10_000, "must be two names, like: a b"),
    ],
)  # fmt: skip
def test_an_absurd_graph_ends_in_a_short_sentence(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        parse_graph(text)
    assert len(str(caught.value)) < 500


@quick
@given(
    st.text()
    | st.text(st.sampled_from('ab1 \n#"{}[],:\\'))
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=3), lambda s: st.lists(s, max_size=3)
    ).map(lambda value: '{"nodes": ' + json.dumps(value) + ', "edges": []}')
)
def test_whatever_the_text_is_it_is_a_graph_or_a_sentence(text: str) -> None:
    try:
        names, links = parse_graph(text)
    except ValueError:
        return
    assert {name for link in links for name in link} <= set(names)
