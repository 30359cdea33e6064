"""What goes wrong at devices and on their links: real processes on this machine, with TLS, node
authentication and the mail router, that are killed, slowed down, cut off and lied to.

Seconds are printed and not asserted (`pytest -m slow -s` shows them): they are for the guide.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_app.deploy.authority import Authority, certificate_pem, load_key
from fl_app.deploy.directory import authority_of
from strategies.checkpoint import load_tensors
from tests.deployed import WORKER, Run, Site, replace, slowed, with_python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc"),
]

STEPS = 150  # of a window, which then lasts about a second
CHANCE = 0.1  # of ten classes
PAIR = {"participants": 2, "devices": "pi-1,pi-2", "consensus.topology": "chain"}


def consensus(windows: int, **values: Any) -> dict[str, Any]:
    return {
        "mode": "consensus",
        "clock": "real",
        "participants": 3,
        "small-width": 4,
        "evaluate-examples": 100,
        "consensus.references": "",
        "consensus.window": STEPS,
        "consensus.steps": STEPS * windows,
        **values,
    }


def told(what: str, seconds: float) -> None:
    print(f"MEASURED {what}: {seconds:.1f} s")


def states(site: Site, name: str, run: Run) -> list[Path]:
    """What a device has on its disk of its node in a run, oldest first."""
    return sorted((site.home(name) / "nodes").glob(f"{run.path.name}-*/*/node-*.safetensors"))


def is_sane(run: Run, summary: dict[str, Any], windows: int) -> None:
    """The run got to its end with models that have learnt something."""
    assert (summary["status"], summary["rounds"]) == ("completed", windows)
    accuracies = [a for a in run.events("nodes")[-1]["accuracy"] if a is not None]
    assert min(accuracies) > 1.5 * CHANCE


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    pytest.importorskip("zenoh")
    place = tmp_path_factory.mktemp("faults")
    devices = ["pi-1", "pi-2", "pi-3"]
    with Site(place, devices, late=["pi-3"], behind_cables=["pi-2"]) as running:
        yield running


class Eventful:
    """One long run in which devices come late, lose processes, lose power, and leave for good."""

    windows = 60

    def __init__(self, site: Site) -> None:
        settings = {"min-participants": 2, "link-patience": 20.0}
        self.site, self.run = site, Run(site, "eventful", consensus(self.windows, **settings))
        run = self.run
        run.wait(lambda: run.window >= 2)
        site.start("pi-3")
        told("a new device works", run.wait(lambda: bool(run.worked(2))))

        run.pass_windows(1)
        began = time.monotonic()
        kept = self.kill_worker("pi-1")
        told("back after its process was killed", self._back("pi-1", 2))
        run.wait(lambda: states(site, "pi-1", run)[-1] > kept)
        told("and through with a window", time.monotonic() - began)
        site.kill_client_app("pi-1")
        site.kill_program("pi-3", "flower-supernode")

        run.pass_windows(1)
        self.before = run.window
        site.kill("pi-2")
        self.kept = states(site, "pi-2", run)[-1]
        began = time.monotonic()
        site.start("pi-2")
        others = site.pids("pi-1", WORKER) + site.pids("pi-3", WORKER)
        with slowed(others, 0.2):  # or they would be done before Flower lets it in again
            self._back("pi-2", 2)
            told("back after its power was cut", time.monotonic() - began)
            run.wait(lambda: states(site, "pi-2", run)[-1] > self.kept)
            told("and through with a window", time.monotonic() - began)

        run.pass_windows(2)
        site.kill("pi-3")
        self.gone = run.window
        self.summary = run.end()

    def kill_worker(self, name: str) -> Path:
        """Returns what it has left on its disk."""
        self.site.kill_program(name, WORKER)
        return states(self.site, name, self.run)[-1]

    def _back(self, name: str, processes: int) -> float:
        line = f"{name} is back with a new process"
        return self.run.wait(
            lambda: sum(line in e["message"] for e in self.run.events("warning")) >= processes - 1
        )


@pytest.fixture(scope="module")
def eventful(site: Site) -> Eventful:
    return Eventful(site)


def test_a_run_goes_on_whatever_devices_do(eventful: Eventful) -> None:
    is_sane(eventful.run, eventful.summary, eventful.windows)


def test_a_device_that_comes_late_copies_a_neighbours_model(eventful: Eventful) -> None:
    copied = [e for e in eventful.run.events("incident") if (e["node"], e["kind"]) == (2, "up")]
    assert [e["peer"] in (0, 1) for e in copied] == [True]
    first = min(eventful.run.worked(2))
    assert 2 < first < eventful.gone


def test_only_a_device_whose_own_process_dies_has_another(eventful: Eventful) -> None:
    # Of pi-1 Flower's process was killed, too, and of pi-3 the SuperNode.
    assert eventful.summary["processes"] == {"pi-1": 2, "pi-2": 2, "pi-3": 1}
    log = eventful.site.log("pi-1")
    assert "the process of pi-1 ended with signal 9; starting it again" in log


def test_a_device_goes_on_with_what_is_on_its_disk(eventful: Eventful) -> None:
    incidents = eventful.run.events("incident")
    assert not [e for e in incidents if (e["node"], e["kind"]) == (1, "up")], "nothing was copied"
    worked = eventful.run.worked(1)
    assert len(worked) < eventful.windows, "the others did not wait for it"
    assert worked[-1] > eventful.before
    steps = [e["steps"][1] for e in eventful.run.events("nodes")]
    assert steps == sorted(steps), "it goes on counting where it was"


def test_a_device_that_is_gone_for_good_is_shown_as_away(eventful: Eventful) -> None:
    assert eventful.summary["away"] == ["pi-3"]
    assert eventful.gone <= eventful.run.worked(2)[-1] < eventful.windows
    reasons = [e["reason"] for e in eventful.run.events("rejected") if e["participant"] == "pi-3"]
    assert "pi-3 has been silent for 20 s" in reasons
    assert eventful.summary["rejected"] >= 1
    for name in ("pi-1", "pi-2"):
        arrays, _ = load_tensors(states(eventful.site, name, eventful.run)[-1])
        assert all(abs(array).max() < 1e3 for array in arrays.values() if array.dtype.kind == "f")


def test_a_device_that_is_cut_off_catches_up(site: Site) -> None:
    site.wait_online(["pi-1", "pi-2"])
    windows = 40
    run = Run(site, "cut", consensus(windows, **PAIR, **{"link-patience": 10.0}))
    run.wait(lambda: run.window >= 2)
    for cable in site.cables:
        cable.cut()
    began, before = time.monotonic(), run.window
    with slowed(site.pids("pi-1", WORKER), 0.3):
        run.wait(lambda: run.window > before + 1 and time.monotonic() > began + 20)
        alone = run.window
        for cable in site.cables:
            cable.heal()
        told("back after 20 s without a link", run.wait(lambda: max(run.worked(1)) > alone))
    summary = run.end()
    is_sane(run, summary, windows)
    assert alone not in run.worked(1), "pi-1 did not wait for it"
    assert (summary["processes"], summary["away"]) == ({"pi-1": 1, "pi-2": 1}, [])
    assert "pi-2 has been silent for 10 s" in run.output
    assert summary["rejected"] >= 1


def test_mail_that_is_lost_late_or_comes_twice_does_no_harm(site: Site) -> None:
    faults = {"loss": 0.3, "duplication": 0.3, "delay-seconds": 0.3}
    windows = 20
    settings = PAIR | {f"consensus.{name}": value for name, value in faults.items()}
    run = Run(site, "mail", consensus(windows, **settings))
    summary = run.end()
    is_sane(run, summary, windows)
    assert 0.2 < summary["lost"] / summary["messages"] < 0.4
    assert summary["duplicates"] > 0


def test_a_slow_device_holds_nobody_up(site: Site) -> None:
    windows = 8
    # Who is alone for long must not forget the other's classes: each has some of all.
    run = Run(site, "slow", consensus(windows, partition="iid", **PAIR))
    run.wait(lambda: bool(run.events("hosts")))  # from the first window on
    with slowed(site.pids("pi-1", WORKER), 0.1):
        summary = run.end()
    assert (summary["status"], summary["rounds"]) == ("completed", windows)
    last = run.events("nodes")[-1]
    slow, fast = last["steps"]
    assert fast == windows * STEPS, "only the slow one was interrupted"
    assert 0 < slow < 0.6 * fast
    # So few steps of the slow one teach nobody much: that of a model that knows nothing, ln 10.
    assert max(last["loss"]) < 2.5


# Of the device's own programs, which then live three hours in the past.
WRONG_CLOCK = """
import datetime, time
right = time.time
time.time = lambda: right() - 3 * 3600
class datetime_(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) - datetime.timedelta(hours=3)
    @classmethod
    def utcnow(cls):
        return super().utcnow() - datetime.timedelta(hours=3)
datetime.datetime = datetime_
"""


def with_a_wrong_clock(place: Path) -> None:
    with_python(place, WRONG_CLOCK)


def with_an_expired_certificate(place: Path) -> None:
    authority = authority_of(place.parents[1])
    assert authority is not None
    sign(authority, place, 0)
    time.sleep(2)


def of_a_foreign_authority(place: Path) -> None:
    authority = Authority.new("somebody else")
    (place / "ca.crt").write_bytes(certificate_pem(authority.certificate))
    sign(authority, place, 1)


def sign(authority: Authority, place: Path, days: int) -> None:
    key = load_key(place / "site.key").public_key()
    (place / "site.crt").write_bytes(certificate_pem(authority.sign(place.name, key, days)))


STRANGERS: dict[str, Callable[[Path], None]] = {
    "clock": with_a_wrong_clock,
    "expired": with_an_expired_certificate,
    "foreign": of_a_foreign_authority,
}


def seldom(tamper: Callable[[Path], None]) -> Callable[[Path], None]:
    """Also have its SuperNode started again seldom, which costs seconds of a core each time."""

    def both(place: Path) -> None:
        tamper(place)
        replace(place / "start-supernode.sh", "${EDGE_FL_AGAIN:-10}", "30")

    return both


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Run, dict]]:
    """A run of two good devices, for which three others are expected that cannot take part."""
    place = tmp_path_factory.mktemp("strangers")
    tampered = {name: seldom(tamper) for name, tamper in STRANGERS.items()}
    devices = ["anna", "bert", *STRANGERS]
    with Site(place, devices, late=list(STRANGERS), tampered=tampered) as site:
        for name in STRANGERS:
            site.start(name)
        settings = {"participants": 5, "min-participants": 2}
        run = Run(site, "strangers", consensus(40, **settings))
        # A device gives the router some time before it tells why it cannot take part.
        run.wait(lambda: "expired cannot take part" in run.output)
        yield site, run, run.end()


def test_the_others_go_on_without_strangers(strangers: tuple[Site, Run, dict]) -> None:
    _, run, summary = strangers
    is_sane(run, summary, 40)
    assert summary["processes"] == {"anna": 1, "bert": 1} | dict.fromkeys(STRANGERS, 0)
    assert summary["away"] == list(STRANGERS)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("clock", "is its clock right?"),
        ("foreign", "certificate verify failed"),
    ],
)
def test_strangers_are_told_why(strangers: tuple[Site, Run, dict], name: str, line: str) -> None:
    site, run, _ = strangers
    assert line in site.log(name)
    assert name not in site.online()
    assert "starting without" in run.output
    assert name in run.output.split("starting without", 1)[1].splitlines()[0]


def test_an_expired_certificate_is_named_by_the_run(strangers: tuple[Site, Run, dict]) -> None:
    _, run, _ = strangers
    assert "expired cannot take part" in run.output
    assert "does not take the certificate" in run.output
