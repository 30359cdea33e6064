"""The page of a run shows what was recorded: live, frozen, in a browser; and it is guarded."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fl_app.record.consensus_figures import DIAGNOSIS
from fl_app.record.page import html
from fl_app.record.page.snapshot import snapshot
from fl_app.record.report import render
from fl_app.record.run_dir import RunDirectory
from fl_app.record.tail import Tail
from fl_app.watch.feed import Feed, Feeds
from fl_app.watch.server import application, bound, served
from strategies.errors import ConfigError
from tests import browser, consensus_events, record_events
from tests.frozen import frozen
from tests.record_events import fill

EXAMPLES = {
    "consensus": (consensus_events.consensus_events, consensus_events.config()),
    "distill": (record_events.distill_events, record_events.config()),
}
each_system = pytest.mark.parametrize("mode", EXAMPLES)
needs_browser = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())


def make(
    root: Path, mode: str, name: str = "run", rounds: int = 12, **changes: Any
) -> RunDirectory:
    events, config = EXAMPLES[mode]
    run = RunDirectory.create(root, {**config, **changes}, name=name)
    fill(run, events(rounds))
    return run


class Client:
    """Asks the server of `runs` without a socket."""

    def __init__(self, runs: Path) -> None:
        self._application = application(Feeds(runs))

    def get(self, path: str, method: str = "GET", **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._application)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost:1") as one:
                return await one.request(method, path, **options)

        return asyncio.run(ask())


def main_curve(run: RunDirectory) -> list[float]:
    """The metric that stands for the run, straight from metrics.jsonl, in percent."""
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    if any(e["event"] == "nodes" for e in lines):
        nodes = [
            [a for a in e["accuracy"] if a is not None] for e in lines if e["event"] == "nodes"
        ]
        return [100 * sum(each) / len(each) for each in nodes]
    return [100 * e["accuracy_ema"] for e in lines if e.get("model") == "global"]


@each_system
def test_the_page_has_the_recorded_values(tmp_path: Path, mode: str) -> None:
    run = make(tmp_path, mode)
    document = snapshot(run)
    first = document["charts"][0]["lines"][0]
    assert [100 * value for _, value in first["points"]] == pytest.approx(main_curve(run))
    assert f"{main_curve(run)[-1]:.1f} %" in document["sentence"]
    assert document["status"] == "completed"
    assert document["progress"]["done"] == 12
    rounds = document["tables"][-1]
    assert [row[0] for row in rounds["rows"]] == [str(n) for n in range(1, 13)]


@each_system
@pytest.mark.parametrize("known", [0, 1, 5, 30])
def test_there_is_a_page_at_every_moment_of_a_run(tmp_path: Path, mode: str, known: int) -> None:
    events, config = EXAMPLES[mode]
    run = RunDirectory.create(tmp_path, config, name="run")
    for event in events(12)[:known]:
        run.emit(**event)
    document = snapshot(run)
    assert document["status"] == "not finished"
    assert document["sentence"]
    assert document == json.loads(json.dumps(document, allow_nan=False))


def test_a_run_that_goes_on_is_told_at_the_moment_of_the_published_model(tmp_path: Path) -> None:
    """The large model is evaluated long after the small one, and a reference even later."""
    run = RunDirectory.create(tmp_path, record_events.config(), name="run")
    run.emit("evaluate", model="server_alone", round=1, t=1.0, accuracy=0.1)
    for event in record_events.distill_events(12):
        if event.get("model") != "global" or event["round"] <= 3:
            run.emit(**event)
    found = {(e["model"], e["round"]): e for e in run.events() if e["event"] == "evaluate"}
    large, small = (found[model, 3] for model in ("global", "small"))
    document = snapshot(run)
    sentence = document["sentence"]
    assert f"has {100 * large['accuracy_ema']:.1f} % accuracy" in sentence
    gap = f"{100 * abs(large['accuracy_ema'] - small['accuracy']):.1f} points"
    assert f"{gap} below the newest small model" in sentence or f"{gap} above" in sentence
    assert f"so far: at {large['t']:.1f} virtual s" in sentence
    assert "server alone" not in sentence
    # Tiles and tables say the same, and of nothing that was measured before or after.
    compared = next(t for t in document["tables"] if t["title"].startswith("The published model"))
    assert compared["columns"][1] == "accuracy (%)"
    shown = {row[0]: row[1] for row in compared["rows"]}
    assert shown["small model"] == f"{100 * small['accuracy']:.1f}"
    assert "server alone, on its labelled examples" not in shown
    assert not any("server alone" in label for label, _ in document["tiles"])


@each_system
def test_a_target_is_reached_where_the_drawn_curve_is_above_it(tmp_path: Path, mode: str) -> None:
    document = snapshot(make(tmp_path, mode))
    points = document["charts"][0]["lines"][0]["points"]
    for target in document["targets"]:
        above = [t for t, value in points if value >= target["value"]]
        assert target["reached"] == (f"{above[0]:.1f} virtual s" if above else None)
    assert {bool(target["reached"]) for target in document["targets"]} == {True, False}


def test_the_metric_is_the_one_that_the_run_tells(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, record_events.config(), name="run")
    metric = {"name": "perplexity", "unit": "", "direction": "lower"}
    run.emit("run_started", config=run.config(), metric=metric)
    for event in record_events.distill_events(3):
        run.emit(**event)
    document = snapshot(run)
    name = "perplexity (lower is better)"
    assert document["metric"] == {"name": name, "unit": "", "scale": 1.0}
    assert re.search(
        rf"has 0\.\d{{3}} {re.escape(name)}: 0\.\d{{3}} (above|below) the newest",
        document["sentence"],
    )
    assert document["tiles"][0][0] == f"{name}, published model"


def test_changed_keys_and_the_command_are_those_of_the_configuration(tmp_path: Path) -> None:
    from fl_app.config import resolve

    config = resolve({"mode": "consensus", "seed": 3, "consensus.topology": "torus", "name": "x y"})
    run = RunDirectory.create(tmp_path, {**config.flat(), "participants": 16}, name="run")
    document = snapshot(run)
    assert {key: value for key, value, _ in document["changed"]} == {
        "mode": "consensus", "seed": "3", "consensus.topology": "torus", "participants": "16",
    }  # fmt: skip
    assert document["command"].startswith("edge-fl run mode=consensus ")
    assert not {"averaging", "name"} & {key for key, _ in document["configuration"]}


def test_classes_are_told_where_evaluations_tell_them(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, record_events.config(), name="run")
    for t, coat in ((1.0, 0.75), (2.0, 0.25)):
        told = {"per_class": {"coat": coat, "bag": 1}, "per_class_ema": {"coat": 0.5}}
        run.emit("evaluate", model="global", round=int(t), t=t, accuracy=0.5, **told)
    run.emit("evaluate", model="small", round=2, t=2.0, accuracy=0.5)
    (table,) = [t for t in snapshot(run)["tables"] if t["title"] == "Accuracy by class"]
    assert table["columns"] == ["class", "global", "global, EMA"]
    assert table["rows"] == [["coat", "25.0 %", "50.0 %"], ["bag", "100.0 %", "-"]]


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_classes_of_nodes_are_told_by_their_mean_and_spread(tmp_path: Path, direction: str) -> None:
    events, config = EXAMPLES["consensus"]
    run = RunDirectory.create(tmp_path, config, name="run")
    metric = {"name": "accuracy", "unit": "%", "direction": direction}
    run.emit("run_started", config=run.config(), metric=metric)
    for event in events(2):
        told = {"bag": {"mean": 0.5, "min": 0.25 * event.get("round", 0), "max": 0.75}}
        of_classes: dict[str, Any] = {"per_class": told} if event["event"] == "nodes" else {}
        run.emit(**event, **of_classes)
    run.emit("evaluate", model="average", round=2, t=1.0, accuracy=0.5, per_class={"bag": 0.6})
    (table,) = [t for t in snapshot(run)["tables"] if t["title"] == "Accuracy by class"]
    assert table["columns"] == ["class", "mean of the nodes", "worst", "best", DIAGNOSIS]
    spread = ["50.0 %", "75.0 %"] if direction == "higher" else ["75.0 %", "50.0 %"]
    assert table["rows"] == [["bag", "50.0 %", *spread, "60.0 %"]]


# ------------------------------------------------------------------------------------ the report


@each_system
def test_a_report_is_one_small_file_that_loads_nothing(tmp_path: Path, mode: str) -> None:
    run = make(tmp_path, mode, rounds=40)
    page = html.page(snapshot(run))
    assert len(page.encode()) < 2e6
    assert not re.search(r"<(script|img|iframe)[^>]* src=|<link[^>]* href=\"(?!data:)", page)
    assert "default-src 'none'" in page
    (tmp_path / "page.html").write_text(page)
    assert frozen(tmp_path / "page.html")["sentence"] == snapshot(run)["sentence"]


def test_a_long_run_of_many_has_a_report_below_two_megabytes(tmp_path: Path) -> None:
    for mode, size in (("distill", 200), ("consensus", 200)):
        events, config = EXAMPLES[mode]
        run = RunDirectory.create(tmp_path, config, name=mode)
        many = events(size, 30) if mode == "distill" else events(size, 100)
        lines = [json.dumps({"t_wall": 0.0, **event}) for event in many]
        (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        document = snapshot(run)
        assert len(html.page(document).encode()) < 2e6
        # The last value is there, however many are left out.
        last = [e["t"] for e in many if e["event"] == "round"][-1]
        assert document["charts"][0]["lines"][0]["points"][-1][0] == last


def test_what_people_name_does_not_become_markup(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>"
    run = make(tmp_path, "distill", dataset=name)
    run.emit("warning", message=name)
    page = html.page(snapshot(run))
    assert "<script>alert" not in page
    (tmp_path / "page.html").write_text(page)
    assert frozen(tmp_path / "page.html")["incidents"][-1]["text"] == name


def test_where_the_files_of_the_page_are_not_a_run_ends_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a bundle of Flower on a machine without an installation."""
    from fl_app.config import resolve
    from fl_app.record.books import close_books

    monkeypatch.setattr(html, "assets", lambda: (_ for _ in ()).throw(html.NoPageError("none")))
    config = resolve({"output": str(tmp_path)})
    run = RunDirectory.create(tmp_path, config.flat(), name="run")
    assert close_books(run, config, "failed", "no data")["status"] == "failed"
    assert run.summary()["status"] == "failed"
    assert not (run.path / "report.html").exists()


# ------------------------------------------------------------------------------------ as it grows


def test_a_feed_reads_what_has_come_and_leaves_a_line_under_way(tmp_path: Path) -> None:
    run = make(tmp_path, "distill", rounds=2)
    feed, metrics = Feed(run.path), run.path / "metrics.jsonl"
    before = feed.document()
    assert feed.document() is before  # nothing was read again
    with metrics.open("a") as file:
        file.write('{"event": "warning", "t_wall": 1.0, "mess')
        file.flush()
        assert feed.document()["incidents"] == before["incidents"]
        file.write('age": "late"}\n')
    assert feed.document()["incidents"][-1]["text"] == "late"
    metrics.write_text('{"event": "warning", "t_wall": 0.0, "message": "anew"}\n')
    assert [each["text"] for each in feed.document()["incidents"]] == ["anew"]


def test_a_run_that_was_named_is_shown_and_not_another_of_its_name(tmp_path: Path) -> None:
    mine = make(tmp_path / "elsewhere", "distill", "run", 3)
    make(tmp_path / "home", "distill", "run", 5)
    make(tmp_path / "home", "distill", "other", 5)
    feeds = Feeds(tmp_path / "home", [mine.path], mine.name)
    assert list(feeds.paths().items()) == [
        ("run", mine.path), ("other", tmp_path / "home" / "other"),
    ]  # fmt: skip
    assert feeds.feed("run").document()["progress"]["done"] == 3


@pytest.mark.parametrize("number", ["new", "old"])
def test_a_run_that_was_made_anew_is_read_from_its_beginning(tmp_path: Path, number: str) -> None:
    """Also one that is as long as the run that it replaces."""
    path, tail = tmp_path / "metrics.jsonl", Tail(tmp_path)
    path.write_text('{"event": "run_started", "t_wall": 0.25}\n')
    assert len(tail.grow()) == 1
    again = '{"event": "run_started", "t_wall": 0.75}\n{"event": "warning", "t_wall": 1.0}\n'
    if number == "old":
        path.write_text(again)
    else:
        (tmp_path / "draft").write_text(again.replace("0.75", "0.25"))
        (tmp_path / "draft").replace(path)
    assert len(tail.grow()) == 2
    assert len(tail.events) == 2
    assert tail.grow() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "metrics.jsonl").write_text("no event\n"),
        lambda path: (path / "metrics.jsonl").write_text('{"event": "round", "t_wall": 0}\n'),
        lambda path: (path / "config.json").write_text("{"),
        lambda path: (path / "config.json").write_text('{"mode": "telepathy"}'),
        lambda path: (path / "config.json").unlink(),
        lambda path: (path / "summary.json").write_bytes(b"\xff"),
    ],
)
def test_a_damaged_run_is_named_and_the_others_are_shown(tmp_path: Path, damage: Any) -> None:
    good, bad = make(tmp_path, "distill", "good"), make(tmp_path, "distill", "bad")
    events = (bad.path / "metrics.jsonl").read_text()
    (bad.path / "metrics.jsonl").write_text(events.replace('"finished"', '"unfinished"'))
    damage(bad.path)
    client = Client(tmp_path)
    listed = {run["name"] for run in client.get("/api/runs").json()["runs"]}
    assert listed == {"good", "bad"}
    answer = client.get("/api/run/bad")
    assert answer.status_code == 404
    assert answer.text
    assert client.get("/api/run/good").json()["name"] == good.name


# --------------------------------------------------------------------------------------- guarded


@pytest.fixture
def client(tmp_path: Path) -> Client:
    make(tmp_path / "runs", "distill")
    (tmp_path / "runs" / "secret.txt").write_text("secret")
    (tmp_path / "runs" / "run" / "figures" / "link.png").symlink_to(tmp_path / "runs/secret.txt")
    return Client(tmp_path / "runs")


def test_only_this_machine_s_own_pages_are_answered(client: Client) -> None:
    good = {"sec-fetch-site": "same-origin", "origin": "http://localhost:1"}
    assert client.get("/api/runs", headers=good).status_code == 200
    for headers in (
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "evil.example:8470"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        for path in ("/", "/api/runs", "/api/run/run", "/run/run/config.json"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 403, (headers, path)
            assert "accuracy" not in answer.text
    answer = client.get("/")
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-frame-options"] == "DENY"
    assert client.get("/api/runs", "POST").status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/run/run/../secret.txt", "/run/run/..%2fsecret.txt", "/run/..%2f/secret.txt",
        "/run/run/figures/../../secret.txt", "/run/run/figures/link.png", "/run/run//etc/passwd",
        "/run/%2e%2e/secret.txt", "/run/./secret.txt", "/run/run/checkpoints/global.safetensors",
        "/run/run/writer.json", "/api/run/..", "/api/run/%2fetc",
    ],
)  # fmt: skip
def test_nothing_but_a_run_s_known_files_can_be_had(client: Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "secret" not in answer.text or "no run" in answer.text


def test_a_run_s_files_can_be_had(client: Client) -> None:
    assert client.get("/run/run/config.json").json()["mode"] == "distill"
    assert client.get("/run/run/metrics.jsonl").text.startswith('{"event"')


def test_a_port_is_one_servers_from_the_first_moment() -> None:
    with bound(0) as taken, pytest.raises(ConfigError, match="port"):
        bound(taken.getsockname()[1])


def test_a_taken_port_is_passed_over_or_named() -> None:
    with bound(0) as taken:
        taken.listen()
        with pytest.raises(ConfigError, match="port"):
            bound(taken.getsockname()[1])
    with pytest.raises(ConfigError, match="port 70000"):
        bound(70000)


# ------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    with browser.browser() as opened:
        yield opened


@pytest.fixture
def tab(chromium: browser.Browser) -> Iterator[browser.Browser]:
    """A tab whose page is left behind, or a test that failed would fail the next ones, too."""
    yield chromium
    chromium.leave()


LAST_VALUE = "charts.drawn[0].data[1].filter((v) => v !== null && v !== undefined)"


@needs_browser
@each_system
def test_a_browser_shows_a_run_as_it_grows(tmp_path: Path, tab: browser.Browser, mode: str) -> None:
    events, config = EXAMPLES[mode]
    run = RunDirectory.create(tmp_path, config, name="live run")
    many = events(12)
    with served(Feeds(tmp_path), 0) as address, run.held():
        run.emit("run_started", config=config)
        tab.open(address)
        tab.wait("document.getElementById('status')?.textContent === 'running'")
        for event in many[: len(many) // 2]:
            run.emit(**event)
        half = len(main_curve(run))
        tab.wait(f"charts.drawn.length && ({LAST_VALUE}).length >= {half}")
        for event in many[len(many) // 2 :]:
            run.emit(**event)
        run.emit("finished", status="completed", reason="")
        tab.wait("document.getElementById('status').textContent === 'completed'")
        curve = main_curve(run)
        assert tab.value(LAST_VALUE) == pytest.approx(curve)
        assert f"{curve[-1]:.1f} %" in tab.value("document.querySelector('.tile b').textContent")
        assert f"{curve[-1]:.1f} %" in tab.value("document.getElementById('sentence').textContent")
        legend = "document.querySelector('.u-legend').textContent"
        assert f"{curve[-1]:.1f} %" in tab.value(legend)
        words = tab.value("document.querySelector('.targets').textContent")
        targets = {each["label"]: each["reached"] for each in tab.value("page.doc.targets")}
        assert any(targets.values())
        for label, reached in targets.items():
            assert f"{label}: {f'after {reached}' if reached else 'not reached'}" in words
        bars = tab.value("document.querySelectorAll('#timeline rect').length")
        nodes = tab.value("document.querySelectorAll('#topology circle').length")
        assert bars > 30
        assert nodes == (8 if mode == "consensus" else 0)
        # Keyboard: from the end one evaluation back, read in the legend.
        tab.value("document.querySelector('.chart [tabindex]').focus()")
        tab.press("End")
        tab.press("ArrowLeft")
        tab.wait(f"{legend}.includes('{curve[-2]:.1f} %')")
        for width in (400, 800, 1400):
            tab.resize(width)
            tab.wait(f"document.documentElement.scrollWidth <= {width}")
        assert tab.errors == []
        tab.leave()


@needs_browser
def test_a_browser_shows_a_report_from_disk_and_compares_live(
    tmp_path: Path, tab: browser.Browser
) -> None:
    one, two = make(tmp_path, "consensus", "one"), make(tmp_path, "consensus", "two", seed=1)
    tab.open(render(one).as_uri(), dark=True)
    tab.wait("charts.drawn.length > 0")
    assert tab.value(LAST_VALUE) == pytest.approx(main_curve(one))
    frames = tab.value("page.doc.topology.frames.length")
    move = "const s = document.querySelector('#topology input'); s.value = 0;"
    tab.value(f"{{{move} s.dispatchEvent(new Event('input')); topology.frame}}")
    assert (frames, tab.value("topology.frame")) == (12, 0)
    assert tab.value("getComputedStyle(document.querySelector('.live-only')).display") == "none"
    with served(Feeds(tmp_path), 0) as address:
        tab.open(f"{address}#one")
        tab.wait("document.querySelectorAll('#other option').length === 3 && page.doc")
        tab.value(f"compare('{two.name}')")
        tab.wait("charts.drawn[0].series.some((s) => s.label.startsWith('two: '))")
        assert tab.errors == []
        tab.leave()


@needs_browser
def test_a_browser_says_when_nobody_answers_any_more(tmp_path: Path, tab: browser.Browser) -> None:
    make(tmp_path, "distill")
    with served(Feeds(tmp_path), 0) as address:
        tab.open(address)
        tab.wait("page.doc && true")
    tab.wait("document.getElementById('notice').textContent.startsWith('No answer from edge-fl')")
    assert tab.value("document.querySelectorAll('.tile').length") > 0
    tab.leave()


@needs_browser
def test_a_page_turns_to_the_run_that_begins(tmp_path: Path, tab: browser.Browser) -> None:
    make(tmp_path, "distill", "old")
    feeds = Feeds(tmp_path)
    with served(feeds, 0) as address:
        tab.open(address)
        tab.wait("page.doc?.name === 'old'")
        tab.value("setInterval(look, 100), 0")
        feeds.choose(tmp_path / "new")
        make(tmp_path, "distill", "new")
        tab.wait("page.doc?.name === 'new'")
        assert tab.errors == []
        tab.leave()


@needs_browser
def test_a_page_of_a_run_that_is_awaited_shows_no_older_one(
    tmp_path: Path, tab: browser.Browser
) -> None:
    make(tmp_path, "distill", "old")
    feeds = Feeds(tmp_path, awaited=True)
    with served(feeds, 0) as address:
        tab.open(address)
        notice = "document.getElementById('notice').textContent"
        tab.wait(f"{notice}.startsWith('The run is being set up')")
        assert tab.value("page.doc ?? null") is None
        tab.value("setInterval(look, 100), 0")
        feeds.choose(tmp_path / "new")
        time.sleep(0.5)  # for which it is not there
        assert tab.value("page.doc ?? null") is None
        make(tmp_path, "distill", "new")
        tab.wait("page.doc?.name === 'new'")
        tab.wait(f"{notice} === ''")
        assert tab.errors == []
        tab.leave()
