"""`edge-fl run`: check, start, submit, follow, judge, end."""

import contextlib
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from fl_app.config import RunConfig, Value, configure, resolve
from fl_app.launch.beforehand import check_elsewhere, check_output
from fl_app.launch.bundle import own_app, submitted, with_own_app
from fl_app.launch.log import LogReader
from fl_app.launch.own_files import with_own_files
from fl_app.launch.screen import Screen
from fl_app.launch.signals import INTERRUPTED, TERMINATED, Stopped, go_on, held, hold
from fl_app.launch.sizing import size_for
from fl_app.launch.standstill import Standstill
from fl_app.launch.superlink import ANSWER_SECONDS, Link, local_superlink
from fl_app.launch.surroundings import check_workers
from fl_app.launch.values import toml_lines
from fl_app.preflight import preflight
from fl_app.record.books import close_books, write_up
from fl_app.record.run_dir import CHECKPOINTS, METRICS, RunDirectory, release, reserve
from fl_app.streams import say
from strategies.errors import DIVERGED_WORDS, EdgeFlError, RunDirectoryError
from strategies.paths import runs_root

# Flower notices a dead ServerApp by its missing heartbeats after 60 s; we look at the process.
LOST_SECONDS = 10.0
# A SuperLink of others that was restarted is back by then, or it is not about to come back.
BACK_SECONDS = 90.0
# Until it is said that a deployment's ServerApp has not begun.
BEGIN_SECONDS = 90.0
# After a run's last word. Flower's simulation ends when all its hosts have: one that is stopped, or
# stuck, never does.
END_SECONDS = 60.0
_ASK_SECONDS = 1.0
FAILED, DIVERGED = 1, 3
SILENT = "No heartbeat received"  # Flower's words
NOT_BEGUN = (
    f"the ServerApp has not begun within {BEGIN_SECONDS:.0f} s, and is still waited for; on the "
    f"server, look at what start-superlink.sh prints (journalctl -u edge-fl-superexec)"
)
UNENDED = "unended"  # Flower's status of a run that has said its last word and goes on


def run(
    overrides: Mapping[str, Value],
    *,
    superlink: str = "",
    ray: str = "",
    verbose: bool = False,
    screen: Screen | None = None,
) -> int:
    """Run the app with `overrides` over its default configuration; returns the exit code.

    `superlink` names a connection of the user's own Flower configuration (a deployment); without
    one, the run is a simulation on this machine. Everything that can be wrong is tried before
    anything starts, of a deployment what can be told from here. Raises EdgeFlError then. In the
    folder of an app that depends on edge-fl it is that app, with its configuration below the
    `overrides`. `ray` is the address of a Ray cluster over which the simulation is to be spread.
    `screen` shows what happens.
    0: completed; 1: failed; 3: a model diverged; 130: interrupted; 143: terminated. Signals that
    come after the run's end wait (see `signals.hold`): they end nothing any more.
    """
    overrides = with_own_app(overrides)
    config = configure(overrides, place="" if superlink else "simulation")
    screen, reserved = screen or Screen(), None
    size: dict[str, Value] = {}
    if superlink:
        check_elsewhere(config, superlink, followed=screen.follows)
    else:
        check_workers()
        check_output(config)
        preflight(config)
        size = size_for(config, ray)
    try:
        go_on()
        if not superlink:
            reserved, overrides = _named(config, overrides)
            screen.begin(reserved or Path(config.resume or runs_root(config.output) / config.name))
        return _run_to_the_end(overrides, superlink, ray, size, verbose, screen)
    except Stopped as stopped:  # before it began, or was to go on
        say(f"edge-fl: {stopped}", sys.stderr)
        return stopped.code
    finally:
        if reserved:
            release(reserved)


def _named(
    config: RunConfig, overrides: Mapping[str, Value]
) -> tuple[Path | None, Mapping[str, Value]]:
    """The directory of a new run without a name, made now so that it can be told and followed from
    the beginning; and the overrides with its name."""
    if config.resume or config.name:
        return None, overrides
    directory = reserve(runs_root(config.output), config.flat())
    return directory, {**overrides, "name": directory.name}


def _run_to_the_end(
    overrides: Mapping[str, Value],
    superlink: str,
    ray: str,
    size: Mapping[str, Value],
    verbose: bool,
    screen: Screen,
) -> int:
    """Run the app, again from its last checkpoint if it failed because the machine slept."""
    while True:
        reader = LogReader(verbose)
        with Standstill() as standstill:
            code, problem, told = _attempt(overrides, superlink, ray, size, reader, screen)
        hold()
        directory = reader.run_directory
        if directory and code in (INTERRUPTED, TERMINATED) and _over(directory):
            if not superlink:
                _close(directory, "completed", "")
            code, problem = 0, ""
        if problem:
            say(f"edge-fl: {problem}", sys.stderr)
        if directory and problem and not superlink:
            status = {FAILED: "failed", DIVERGED: "diverged"}.get(code, "stopped")
            _close(directory, status, problem, told)
        slept = code == FAILED and not superlink and standstill.seconds
        if not (slept and directory and _can_go_on(directory)):
            break
        say(
            f"edge-fl: this machine, or all that ran on it, stood still for {slept:.0f} s, which "
            f"Flower takes for the end of it; going on from the last checkpoint",
            sys.stderr,
        )
        go_on()
        overrides = RunDirectory.open(directory).config() | {"resume": str(directory)}
    if directory:
        if problem and code != DIVERGED:  # it would do that again
            _point_to_resume(directory, superlink)
        screen.end(directory)
    return code


def _attempt(
    overrides: Mapping[str, Value],
    superlink: str,
    ray: str,
    size: Mapping[str, Value],
    reader: LogReader,
    screen: Screen,
) -> tuple[int, str, float]:
    """Run the app once; returns the exit code, why it did not complete, or "", and when a signal
    told it to end (seconds since 1970, inf for never)."""
    try:
        screen.stage("starting Flower's SuperLink" if not superlink else f"asking {superlink}")
        with _link(superlink, ray) as link:
            problem = _run_on(link, overrides, size, reader, screen)
            return code_of(problem), problem, math.inf
    except (EdgeFlError, OSError) as error:
        return FAILED, str(error), math.inf
    except Stopped as stopped:
        return stopped.code, str(stopped), stopped.moment


def code_of(problem: str) -> int:
    """The exit code of a run that did not complete because of `problem`, "" for one that did.

    The words are the ServerApp's own, which may have run on another machine.
    """
    if DIVERGED_WORDS in problem:
        return DIVERGED
    return FAILED if problem else 0


def _close(directory: Path, status: str, reason: str, told: float = math.inf) -> None:
    """Write the end of a run whose ServerApp could not, or not to the last line: Flower stops one
    without a last word. What it wrote itself stands, but for a failure after the moment `told`:
    who told us to end may have told all processes, and those that went first are not the reason."""
    try:
        run = RunDirectory.open(directory)
        with run.held():
            ends = [e for e in run.events() if e["event"] in ("finished", "resumed")]
            failed = bool(ends) and ends[-1].get("status") == "failed"
            late = failed and (directory / METRICS).stat().st_mtime > told
            if not ends or ends[-1]["event"] == "resumed" or late:
                close_books(run, resolve(run.config()), status, reason)
            elif not run.written_up(ends[-1]["status"]):
                write_up(run, resolve(run.config()))
    except (EdgeFlError, OSError) as error:
        say(f"edge-fl: the end of the run could not be recorded: {error}", sys.stderr)


def _over(directory: Path) -> bool:
    """Whether the run says that it has completed, if it can be seen from here."""
    run = RunDirectory(directory)
    with contextlib.suppress(RunDirectoryError):
        if run.summary().get("status") == "completed":
            return True
        ends = [e for e in run.events() if e["event"] in ("finished", "resumed")]
        return bool(ends) and ends[-1].get("status") == "completed"
    return False


def _can_go_on(directory: Path) -> bool:
    checkpoints = directory / CHECKPOINTS
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def _point_to_resume(directory: Path, superlink: str) -> None:
    """Say how to go on, if there is a checkpoint; what is on another machine cannot be seen."""
    if _can_go_on(directory):
        place = f" --superlink {superlink}" if superlink else ""
        say(f"edge-fl: to go on: edge-fl resume {directory}{place}", sys.stderr)


def _link(superlink: str, ray: str) -> contextlib.AbstractContextManager[Link]:
    if superlink:
        return contextlib.nullcontext(Link(superlink, dict(os.environ)))
    return local_superlink(ray)


def _run_on(
    link: Link,
    overrides: Mapping[str, Value],
    size: Mapping[str, Value],
    reader: LogReader,
    screen: Screen,
) -> str:
    """Submit the app and follow it to its end; returns why it did not complete, or ""."""
    run_id, ours = "", link.supervisor is not None
    try:
        # What was submitted to others goes on there, and can be stopped by its id alone.
        with contextlib.nullcontext() if ours else held():
            run_id = _submit(link, overrides, size)
        screen.stage("loading the data; the first round begins")
        while problem := _follow(link, run_id, reader, screen):
            if not _is_back(link, run_id):
                return problem
            say(f"edge-fl: SuperLink {link.connection!r} was away and is back", sys.stderr)
            reader.begin_again()
        status, details = _status(link, run_id, reader)
        hold()
        _show_rest(link, run_id, reader, screen)
    except BaseException:
        # A local SuperLink is about to end with all it has started; another one must be told.
        if run_id and not ours:
            with contextlib.suppress(EdgeFlError):
                link.ask("stop", run_id, link.connection)
        raise
    if status == UNENDED:
        print(f"edge-fl: the run is over, but {details}; it is ended now", file=sys.stderr)
    if completed(status, reader.run_directory):
        return ""
    if status == "finished:completed":
        return "the run has ended, but its summary.json does not say completed"
    if SILENT in details:
        details += " (has the machine that it runs on slept?)"
    return f"the run did not complete: {details}"


def _submit(link: Link, overrides: Mapping[str, Value], size: Mapping[str, Value]) -> str:
    """`flwr run` the app; returns the run id."""
    config, remote = configure(overrides), link.supervisor is None
    with (
        tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file,
        submitted(config, remote=remote, app=own_app(Path.cwd())) as bare,
        with_own_files(bare, config.flat(), remote=remote) as app,
    ):
        file.write("\n".join(toml_lines(overrides)))
        file.flush()
        arguments = ["run", str(app), link.connection, "--run-config", file.name]
        if size:
            settings = (line.replace(" = ", "=", 1) for line in toml_lines(size))
            arguments += ["--federation-config", " ".join(settings)]
        return str(link.ask(*arguments)["run-id"])


def _follow(link: Link, run_id: str, reader: LogReader, screen: Screen) -> str:
    """Show the log until it ends. Returns what has died, if something has, else ""."""
    lines: queue.Queue[str | None] = queue.Queue()
    stream = link.flwr("log", run_id, link.connection, "--stream")
    threading.Thread(target=_pump, args=(stream, lines), daemon=True).start()
    watch, told = _Watch(link), link.supervisor is not None
    begun_by = time.monotonic() + BEGIN_SECONDS
    try:
        while not (problem := watch.problem()) and not _overdue(link, reader):
            if not (told or reader.begun) and time.monotonic() > begun_by:
                told = True
                say(f"edge-fl: {NOT_BEGUN}", sys.stderr)
            with contextlib.suppress(queue.Empty):
                line = lines.get(timeout=0.5)
                if line is None:
                    return "" if stream.wait() == 0 else link.lost
                _show(line, link, reader, screen)
        return problem
    finally:
        stream.kill()
        stream.wait()


def _is_back(link: Link, run_id: str) -> bool:
    """Whether a SuperLink that was lost answers again within BACK_SECONDS, and knows the run; one
    of our own never does."""
    deadline = time.monotonic() + BACK_SECONDS
    while link.supervisor is None and time.monotonic() < deadline:
        with contextlib.suppress(EdgeFlError, IndexError):
            return bool(link.ask("list", "--run-id", run_id, link.connection)["runs"][0])
        time.sleep(_ASK_SECONDS)
    return False


def _show_rest(link: Link, run_id: str, reader: LogReader, screen: Screen) -> None:
    """Show what the stream of the log has left out: Flower looks whether the run has finished after
    it has looked for lines, and what comes between the two does not come at all."""
    whole = link.flwr("log", run_id, link.connection, "--show")
    try:
        output, _ = whole.communicate(timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return  # of a run that has ended all the same
    finally:
        whole.kill()
    for line in reader.left_out(output.splitlines(keepends=True)):
        _show(line, link, reader, screen)


def _show(line: str, link: Link, reader: LogReader, screen: Screen) -> None:
    """Show a line of the log. In a deployment it is the log that tells the run's directory."""
    if (text := reader.read(line)) is not None:
        screen.show(text)
    if link.supervisor is None and reader.run_directory:
        screen.found(reader.run_directory)


class _Watch:
    """Notices when a process that the run needs is gone without Flower's saying so."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._seen = False
        self._last_seen = 0.0

    def problem(self) -> str:
        """What has died, or ""."""
        if not self._link.alive:
            return self._link.lost
        pids, now = self._link.serverapp_pids(), time.monotonic()
        if pids is None:
            return ""
        if pids:
            self._seen, self._last_seen = True, now
        lost = self._seen and now - self._last_seen > LOST_SECONDS
        return "the process of the ServerApp has died" if lost else ""


def _pump(stream: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    for line in stream.stdout or ():
        lines.put(line)
    lines.put(None)


def _overdue(link: Link, reader: LogReader) -> bool:
    """Whether a simulation should have ended long ago: all that is left of it is ended then."""
    return link.supervisor is not None and time.monotonic() > reader.closed_at + END_SECONDS


def _status(link: Link, run_id: str, reader: LogReader) -> tuple[str, str]:
    """(status, details) by Flower, once the run has finished; UNENDED for one that is overdue."""
    while not _overdue(link, reader):
        answer = link.ask("list", "--run-id", run_id, link.connection)["runs"][0]
        if answer["status"].startswith("finished"):
            return answer["status"], answer["status-details"]
        time.sleep(1)
    return UNENDED, "Flower's simulation goes on (is one of its processes stopped, or stuck?)"


def completed(status: str, run_directory: Path | None) -> bool:
    """Whether a run with this Flower status did what it was asked to.

    "finished:completed" alone does not say so: a simulated ServerApp that calls sys.exit(3) gets it
    too. The summary settles it, unless it was written on another machine; also of a simulation that
    has said its last word and does not end.
    """
    if status not in ("finished:completed", UNENDED):
        return False
    if run_directory is None or not run_directory.is_dir():
        return run_directory is not None
    with contextlib.suppress(RunDirectoryError):
        return RunDirectory(run_directory).summary().get("status") == "completed"
    return False
