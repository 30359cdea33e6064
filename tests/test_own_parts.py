"""Algorithms, averaging rules and topologies of somebody's own, by name."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_app import cli
from fl_app.config import OWN_KEYS, RunConfig, configure, resolve
from fl_app.launch.own_files import with_own_files
from fl_app.launch.values import parse_assignments
from fl_app.own_code import own_code, own_digest
from fl_app.preflight import preflight
from fl_app.record.books import recorded
from fl_app.record.metrics import of_kind
from fl_app.settings import averaging_of, consensus_run_of, distillation_run_of
from strategies import plugins
from strategies.consensus.own import algorithm_named, topology_named
from strategies.consensus.strategy import Consensus
from strategies.contracts import ContractError, algorithms
from strategies.contracts.rules import update
from strategies.errors import ConfigError, DataError
from strategies.plugin_name import PluginName, parse
from strategies.recorder import unrecorded
from strategies.roster import SuperNode, prepare_hosts
from strategies.rules import make_rule
from tests import fake_grid  # noqa: F401 - lets Messages be made outside of a ServerApp
from tests.fake_grid import FakeGrid
from tests.frozen import frozen
from tests.harness import run

DOCS = Path(__file__).resolve().parents[1] / "docs" / "extend.md"
BROKEN = """
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch

from strategies.consensus.baselines import Gossip
from strategies.consensus.descent import LocalSGD
from strategies.consensus.topology import Topology
from strategies.ranges import Within
from strategies.rules import Rule

nothing = 3

class Few:
    def start(self, node): pass

@dataclass(frozen=True)
class Odd(LocalSGD):
    exchange: ClassVar[str] = "now and then"

@dataclass(frozen=True)
class Needs(LocalSGD):
    share: Annotated[float, Within(0, 1)]

class Raises(LocalSGD):
    def __init__(self, topology):
        raise RuntimeError("not today")

class Bare(LocalSGD):
    def __init__(self, topology, momentum: float = 0.25, weight_decay: float = 0.0):
        super().__init__(topology, 0.0, 0.0)

class NoMomentum(LocalSGD):
    def __init__(self, topology):
        super().__init__(topology, 0.0, 0.0)

@dataclass(frozen=True)
class Short(Gossip):
    def message(self, rows, ends, seqs):
        return {"weights": rows.weights[rows.at(ends).nodes, :-1].clone()}

@dataclass(frozen=True)
class Shared(Gossip):
    def message(self, rows, ends, seqs):
        return {"weights": rows.weights[[rows.nodes.index(rows.node(e)) for e in ends]]}

    def receive(self, rows, ends, seqs, mails):
        for end, mail in zip(ends, mails):
            mail["weights"].mul_(0.5)
            super().receive(rows, [end], seqs, [mail])

SEEN = []

@dataclass(frozen=True)
class Remembers(Gossip):
    def step(self, rows, chosen, gradients, rate):
        SEEN.append(len(SEEN))
        super().step(rows, chosen, gradients * (1 + 1e-3 * len(SEEN)), rate)

@dataclass(frozen=True)
class Claims(Gossip):
    exact: ClassVar[bool] = True

class Buffered(Rule):
    buffered = True
    def combine(self, version, model, updates, bases): return dict(updates[-1].vectors)

class Overshoots(Rule):
    def combine(self, version, model, updates, bases):
        return {k: 2 * updates[0].vectors[k] - v for k, v in model.items()}

class Wide(Rule):
    def combine(self, version, model, updates, bases):
        return {key: np.zeros(7) for key in model}

class Wrong(Rule):
    def combine(self, version, model, updates, bases): return [1.0]

class Divides(Rule):
    def combine(self, version, model, updates, bases): return 1 / 0

class Forgets(Rule):
    def __init__(self): self.last = 0.0
    def combine(self, version, model, updates, bases):
        self.last += 1.0
        return {key: (self.last + 0 * value).astype("f4") for key, value in model.items()}

def two_halves(size, generator): return [(0, 1), (2, 3)]
def beyond(size, generator): return [(0, size)]
def itself(size, generator): return [(0, 0)]
def number(size, generator): return size
def heavy(size, generator):
    return Topology("heavy", size, ({(i, i + 1): 0.9 for i in range(size - 1)},))
def smaller(size, generator): return Topology("small", 2, ({(0, 1): 0.5},))
def fails(size, generator): raise KeyError("where")
def fickle(size, generator):
    SEEN.append(0)
    return [(i, i + 1) for i in range(size - 1)] + ([(0, size - 1)] if len(SEEN) % 2 else [])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the file that the documentation shows, and one of which nothing is right."""
    made = tmp_path_factory.mktemp("own")
    [code] = re.findall(r"^```python\n# mine.py\n(.*?)^```", DOCS.read_text(), re.M | re.S)
    (made / "mine.py").write_text(code)
    (made / "broken.py").write_text(BROKEN)
    return made


def mine(folder: Path, name: str) -> str:
    return f"{folder / 'mine.py'}:{name}"


def broken(folder: Path, name: str) -> str:
    return f"{folder / 'broken.py'}:{name}"


def consensus(**keys: Any) -> RunConfig:
    given = {f"consensus.{key.replace('_', '-')}": value for key, value in keys.items()}
    return configure({"mode": "consensus", **given})


def average(**keys: Any) -> RunConfig:
    given = {key.replace("_", "-"): value for key, value in keys.items()}
    return configure({"mode": "average", **given})


# ------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "place", "name", "settings"),
    [
        ("/a/b.py:C", "/a/b.py", "C", ()),
        ("pack.age:C:x=1", "pack.age", "C", (("x", "1"),)),
        ("/a:b/c.py:f:x=0.5:name=a=b", "/a:b/c.py", "f", (("x", "0.5"), ("name", "a=b"))),
    ],
)
def test_a_name_has_a_place_and_settings(
    text: str, place: str, name: str, settings: tuple[tuple[str, str], ...]
) -> None:
    assert parse(text) == PluginName(place, name, settings)


@pytest.mark.parametrize("text", ["rung", "", ":C", "a.py:", "a b:C", "/a.py", "x:1y", "a:C:1x=2"])
def test_what_is_no_name(text: str) -> None:
    assert parse(text) is None
    for key in OWN_KEYS:
        mode = {"mode": "consensus"} if key.startswith("consensus.") else {}
        with pytest.raises(ConfigError, match="or name your own"):
            resolve({key: text, **mode})


def test_a_relative_path_is_made_absolute_on_the_command_line_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for key in OWN_KEYS:
        given = parse_assignments([f"{key}=mine.py:Name:share=0.3"])
        assert given == {key: mine(folder, "Name:share=0.3")}
        with pytest.raises(ConfigError, match="must be an absolute path"):
            resolve({key: "mine.py:Name", "mode": "consensus" if "." in key else "distill"})


def test_settings_have_the_types_of_the_parameters() -> None:
    def function(a: int, b: float, *, c: bool = False, d: str = "", e=2, f=None) -> None: ...

    def given(settings: str) -> dict[str, Any]:
        return plugins.arguments("key", f"module:function{settings}", function, ["a", "b"])

    assert given("") == {}
    assert given(":c=true:d=4:e=7:f=x") == {"c": True, "d": "4", "e": 7, "f": "x"}
    for settings, message in [
        (":a=1", "has no setting 'a'; its settings: c, d, e, f"),
        (":e=1.5", "e='1.5': Input should be a valid integer"),
        (":c=perhaps", "c='perhaps': Input should be a valid boolean"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            given(settings)


# -------------------------------------------------------------------------------------- algorithms


def test_an_algorithm_gets_the_keys_that_it_names_and_its_own_settings(folder: Path) -> None:
    name = mine(folder, "Cautious:share=0.3")
    settings = algorithms.SETTINGS
    made: Any = algorithm_named(name, settings, topology_named("ring", 5))
    assert (made.share, made.momentum) == (0.3, settings.momentum)
    [plain, moving] = algorithms.variants(name)
    assert moving.make(plain.topology).momentum == 0.8  # type: ignore[attr-defined]
    config = consensus(algorithm=name, momentum=0.5)
    preflight(config)
    assert not config.consensus.synchronous


@pytest.mark.parametrize("clause", algorithms.CLAUSES)
def test_the_documented_algorithm_keeps_to_the_contract(
    folder: Path, clause: algorithms.Clause
) -> None:
    clause(algorithms.Subject(mine(folder, "Cautious:share=0.3")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "absent is not in"),
        ("nothing", "nothing is no class"),
        ("Few", "Few has no connect, disconnect, lengths, message, mix, receive"),
        ("Odd", "exchange='now and then' must be 'random' or 'synchronous'"),
        ("Needs", "Needs needs share; write ...:Needs:share=VALUE"),
        ("Needs:share=2", "share=2.0 must be at least 0 and at most 1"),
        ("Needs:shore=0.5", "Needs has no setting 'shore'; its settings: share"),
        ("Needs:momentum=0.5", "has no setting 'momentum'"),
        ("Raises", "cannot be made: RuntimeError: not today"),
        ("Short", "and lengths() says"),
    ],
)
def test_what_is_no_algorithm_is_refused_before_anything_starts(
    folder: Path, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as told:
        preflight(consensus(algorithm=broken(folder, name)))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "clause", "message"),
    [
        ("Shared", algorithms.messages_share_no_memory_and_are_left_as_they_are, "changed after"),
        ("Remembers", algorithms.repeats_bit_by_bit, "other bits"),
        ("Claims", algorithms.what_is_called_exact_is, "exact = True, but"),
        ("Remembers", algorithms.nothing_is_forgotten_between_windows, "other bits"),
    ],
)
def test_the_contract_can_be_broken(
    folder: Path, name: str, clause: algorithms.Clause, message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        clause(algorithms.Subject(broken(folder, name)))


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("NoMomentum", {"momentum": 0.5}, "consensus.momentum=0.5 has no effect"),
        ("Bare", {"clip": 2.0}, "consensus.clip=2 has no effect"),
        ("Bare", {"theta": 0.3}, "consensus.theta=0.3 has no effect"),
    ],
)
def test_a_key_that_it_has_no_use_for_is_refused(
    folder: Path, name: str, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        consensus(algorithm=broken(folder, name), **keys)
    consensus(algorithm=broken(folder, "Bare"), momentum=0.5)


# -------------------------------------------------------------------------------------- topologies


def test_a_topology_of_ones_own_follows_from_the_seed(folder: Path) -> None:
    name = mine(folder, "wheel:chords=2")
    built = topology_named(name, 12, seed=3)
    assert (built.name, built.size, len(built.edges)) == ("wheel", 12, 14)
    assert built == topology_named(name, 12, seed=3) != topology_named(name, 12, seed=4)
    assert built.mixing_matrix().min() >= 0
    preflight(consensus(topology=name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two_halves", "two_halves returned a graph that is not connected"),
        ("beyond", "beyond returned the pair (0, 8); nodes are 0 to 7"),
        ("itself", "no node is its own neighbour"),
        ("number", "number returned int; return pairs of neighbours"),
        ("heavy", "the weights of a node add up to 1.8, more than 1"),
        ("smaller", "returned a topology of 2 nodes, not of 8"),
        ("fails", "failed: KeyError: 'where'"),
        ("nothing", "nothing is no function"),
    ],
)
def test_what_is_no_topology_is_refused_before_anything_starts(
    folder: Path, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        preflight(consensus(topology=broken(folder, name)))


# ------------------------------------------------------------------------------------------- rules


def test_a_rule_of_ones_own_averages_and_remembers(folder: Path, tmp_path: Path) -> None:
    settings = {"mode": "average", "averaging": mine(folder, "Damped:beta=0.9")}
    summary, _ = run(tmp_path, settings)
    assert summary["status"] == "completed"
    other, _ = run(tmp_path, {"mode": "average"})
    assert summary["checksum"] != other["checksum"]


def test_a_rule_can_take_updates_as_they_come(folder: Path) -> None:
    config = average(averaging=broken(folder, "Buffered"), buffer_size=2)
    assert config.buffered
    assert averaging_of(config).buffered
    assert {len(a.jobs) for a in config.trace().aggregations} == {2}
    preflight(config)
    with pytest.raises(ConfigError, match=r"fraction-train=.* has no effect"):
        average(averaging=broken(folder, "Buffered"), fraction_train=0.5)
    with pytest.raises(ConfigError, match="buffer-size=2 has no effect"):
        average(averaging=mine(folder, "Damped"), buffer_size=2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Few", "Few has no combine, load_state, state"),
        ("Wide", "returned float64 (7,) as 'weights'; return float32"),
        ("Wrong", "returned list; return vectors by the names weights and buffers"),
        ("Divides", "combine() failed: ZeroDivisionError"),
        ("Forgets:beta=1", "Forgets has no setting 'beta'; its settings: none"),
    ],
)
def test_what_is_no_rule_is_refused_before_anything_starts(
    folder: Path, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        preflight(average(averaging=broken(folder, name)))


@pytest.mark.parametrize(
    "keys", [{"secure_aggregation": True}, {"privacy.clients": "fixed"}], ids=str
)
def test_a_rule_whose_use_of_an_update_is_unknown_gets_no_secret_ones(
    folder: Path, keys: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="cannot be with averaging="):
        average(averaging=mine(folder, "Damped"), **keys)


def test_a_rule_is_called_with_what_the_documentation_says(folder: Path) -> None:
    rule = make_rule(averaging_of(average(averaging=mine(folder, "Damped"))))
    model = {"weights": np.ones(3, np.float32), "buffers": np.zeros(0, np.float32)}
    found = rule.combine(1, model, [update(0, [3, 3, 3], [])], {0: model})
    assert found["weights"].tolist() == [3, 3, 3]
    assert rule.state()["velocity"].tolist() == [2, 2, 2]


# ------------------------------------------------------------------------------------ runs, devices


def test_nodes_agree_by_an_algorithm_and_a_topology_of_ones_own(folder: Path) -> None:
    torch.set_num_threads(1)
    config = consensus(
        algorithm=mine(folder, "Cautious:share=0.3"),
        topology=mine(folder, "wheel"),
        steps=4,
        window=2,
        references="",
        settle=0,
    )
    small = {"small-width": 2, "evaluate-examples": 20, "participants": 5}
    config = resolve({**config.flat(), **small})
    with unrecorded() as memory:
        Consensus(consensus_run_of(config), memory).start(FakeGrid(config.flat(), nodes=1))


def test_their_files_travel_to_devices_in_the_bundle(folder: Path, tmp_path: Path) -> None:
    app = tmp_path / "edge-fl"
    (app / "strategies").mkdir(parents=True)
    values: dict[str, Any] = {
        "averaging": mine(folder, "Damped"),
        "consensus.algorithm": mine(folder, "Cautious:share=0.3"),
        "consensus.topology": broken(folder, "heavy"),
        "task": "images",
    }
    with with_own_files(app, values, remote=True) as bundle:
        copies = {path.name for path in (bundle / "strategies" / "own").iterdir()}
        files = (folder / "mine.py", folder / "broken.py")
        assert copies == {plugins.bundled(path).name for path in files}
    with (
        pytest.raises(ConfigError, match="absent is not in"),
        with_own_files(app, {"averaging": mine(folder, "absent")}, remote=True),
    ):
        pass


# ---------------------------------------------------------------------------------- other code


ONES = (
    "def share(labels, participants, generator):\n    return [[k] for k in range(participants)]\n"
)


def test_a_run_that_is_resumed_with_another_file_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.py"
    own.write_text(ONES)
    config = average(partition=f"{own}:share", output=str(tmp_path / "runs"))
    with pytest.raises(ZeroDivisionError), recorded(config) as run:
        raise ZeroDivisionError
    resumed = resolve({**config.flat(), "resume": str(run.path)})

    def told() -> list[str]:
        """After it was resumed once more."""
        with pytest.raises(ZeroDivisionError), recorded(resumed) as run:
            raise ZeroDivisionError
        return [event["message"] for event in of_kind(run.events(), "warning")]

    assert told() == []
    first = own_code(config)
    own.write_text(f"{ONES}# another one\n")
    [said] = told()
    assert said.startswith("resumed with other code than before (that of partition): ")
    assert told() == [said]  # what it was resumed with last is what counts
    codes = run.summary()["code"]
    assert [code["own"] for code in codes] == [first, own_code(config)]
    assert frozen(run.path / "report.html")["code"].count("partition from ") == 2
    monkeypatch.setattr("fl_app.record.books.provenance", lambda: codes[0] | {"fingerprint": "f"})
    assert "than before (edge-fl's): " in told()[-1]


def test_the_code_of_a_package_is_all_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "somebodys"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "parts.py").write_text(ONES)
    helper = package / "deep" / "helper.py"
    helper.write_text("A = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = average(partition="somebodys.parts:share")
    before = own_code(config)["partition"]
    helper.write_text("A = 2\n")
    changed = own_code(config)["partition"]
    helper.rename(package / "deep" / "other.py")
    assert len({before, changed, own_code(config)["partition"]}) == 3
    helper.write_text("A = 1\n")
    (package / "deep" / "other.py").unlink()
    assert own_code(config)["partition"] == before


def test_a_host_with_another_file_cannot_take_part(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(ONES)
    config = average(partition=f"{own}:share", participants=2)
    hosts = (SuperNode(11, "host-0"),)

    def prepare(code: str) -> None:
        prepare_hosts(
            FakeGrid(config.flat(), nodes=1), hosts, 2, 5.0, print, besides={"code": code}
        )

    assert distillation_run_of(config).own_code == own_digest(config)
    prepare(own_digest(config))
    with pytest.raises(DataError, match="host-0: partition names code that is another here"):
        prepare("partition=0123456789abcdef")


# ------------------------------------------------------------------------------------ edge-fl check


def test_check_says_yes_or_no_to_each_clause(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(["check", "rule", "mine.py:Damped:beta=0.9"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "yes  its state goes on with equal bits" in said
    assert all(line.startswith("yes") for line in said)
    assert cli.main(["check", "rule", "broken.py:Forgets"]) == 2
    told = capsys.readouterr()
    assert "no   its state goes on with equal bits: resumed from state()" in told.out
    assert "yes  one update is enough" in told.out
    assert "breaks 1 clause(s) of what a rule keeps to" in told.err
    assert cli.main(["check", "rule", "broken.py:Overshoots"]) == 2
    assert "no   variances stay positive: a variance became" in capsys.readouterr().out
    assert cli.main(["check", "topology", "broken.py:fickle", "participants=7"]) == 2
    assert "no   the seed decides and nothing else" in capsys.readouterr().out
    for words, message in [
        (["algorithm"], "which algorithm?"),
        (["algorithm", "ring"], "is unknown; choose one of"),
        (["topology", "mine.py:rim"], "rim is not in"),
    ]:
        assert cli.main(["check", *words]) == 2
        assert message in capsys.readouterr().err


def test_topology_draws_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(["topology", "mine.py:wheel:chords=2", "12", "--out", "wheel.png"]) == 0
    assert "nodes: 12; edges: 14" in capsys.readouterr().out
    assert (folder / "wheel.png").stat().st_size > 1000
