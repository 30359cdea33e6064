"""Opening and closing a run's record: the directory at the start, the summary at the end."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fl_app.assemble import topology_text
from fl_app.config import RunConfig, defaults
from fl_app.own_code import own_code
from fl_app.problem import problem_of
from fl_app.provenance import provenance
from fl_app.record.console import console_listener
from fl_app.record.metrics import codes_of, latest, link_counts, targets_of
from fl_app.record.modes import VIEWS
from fl_app.record.page.html import NoPageError
from fl_app.record.report import render
from fl_app.record.run_dir import RunDirectory
from fl_app.record.sinks import attach_sinks
from fl_app.settings import distillation_run_of
from fl_app.streams import say
from strategies.errors import ConfigError, DataError, DivergedError, RunDirectoryError
from strategies.paths import runs_root
from strategies.problem import task_of

# Keys that may differ when a run is resumed: they do not change what is computed.
_FREE_ON_RESUME = {
    "resume", "output", "name", "sinks", "data-root", "checkpoint-every", "consensus.carrier",
}  # fmt: skip


# Given what is to be called when this process is told to end.
WhenTold = Callable[[Callable[[], None]], object]


@contextmanager
def recorded(config: RunConfig, when_told: WhenTold = lambda _: None) -> Iterator[RunDirectory]:
    """Within it a run is worked: opens the books, and closes them however that ends.

    Nobody else may write the run meanwhile. Of several verdicts the first stays: when the process
    is told to end, so are those on which it depends, and their deaths are not why the run stopped.

    Raises what `open_books` raises, RunDirectoryError for a directory that cannot be made or read
    or that another process writes, and what is raised within.
    """
    if config.resume:
        run = RunDirectory.open(config.resume)
    else:
        run = RunDirectory.create(runs_root(config.output), config.flat(), name=config.name)
    with run.held():
        open_books(run, config)
        say(f"run directory: {run.path}")
        closing, closed = threading.Lock(), False

        def close(status: str, reason: str) -> None:
            nonlocal closed
            with closing:
                first, closed = not closed, True
                if first:
                    close_books(run, config, status, reason)

        when_told(lambda: close("stopped", "the run's process was told to end"))
        status, reason = "failed", ""
        try:
            yield run
            status = "completed"
        except DivergedError as error:
            status, reason = "diverged", str(error)
            raise
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            close(status, reason)
            say(f"run directory: {run.path}")


def open_books(run: RunDirectory, config: RunConfig) -> None:
    """Give the run, new or resumed, its listeners.

    Raises ConfigError when a resumed run's configuration is another one or it is complete already,
    DataError when its data are others.
    """
    if config.resume:
        _check_resumable(run, config)
    view = VIEWS[config.mode]
    past = run.events() if config.resume else ()
    run.listeners.append(
        console_listener(view, clock=config.clock, rounds=config.rounds, past=past)
    )
    if not config.resume:
        run.emit("run_started", config=config.flat(), metric=_metric_of(config), **_digests(config))
        for line in task_of(problem_of(config)).unused:
            run.emit("warning", message=line)
    code = {**provenance(), "own": own_code(config)}
    if changed := _changed(codes_of(past), code):
        run.emit(
            "warning",
            message=f"resumed with other code than before ({changed}): the results may be those of "
            f"neither",
        )
    run.emit("code", **code)
    attach_sinks(run, config.sink_list)


def check_resumable(config: RunConfig) -> None:
    """Raise what `recorded` would raise about the run that is to be resumed."""
    run = RunDirectory.open(config.resume)
    with run.held():
        _check_resumable(run, config)


def _check_resumable(run: RunDirectory, config: RunConfig) -> None:
    if run.summary().get("status") == "completed":
        raise ConfigError(f"resume={config.resume!r}: that run has completed; start a new one")
    if run.summary().get("status") == "diverged" and config.virtual:
        raise ConfigError(
            f"resume={config.resume!r}: that run has diverged and would do it again "
            f"({run.summary()['reason']}); start a new one"
        )
    # A run that was begun before there was a key has had its default.
    before, now = {**defaults(), **run.config()}, config.flat()
    different = [
        f"{key} was {before.get(key)!r} and is {now[key]!r}"
        for key in now
        if key not in _FREE_ON_RESUME and before.get(key) != now[key]
    ]
    if different:
        raise ConfigError(
            f"resume={config.resume!r}: the configuration is another one ({'; '.join(different)}); "
            f"use `edge-fl resume`, which takes that run's own"
        )
    if changed := _changed_files(run, config):
        raise DataError(
            f"resume={config.resume!r}: {changed[0]} are others than when that run started; put "
            f"back what was there, or start a new run"
        )
    if config.distils:
        # Here, for it imports Flower's strategies, which other runs do without.
        from strategies.distillation.publisher import check_resumable

        check_resumable(distillation_run_of(config), run)


def made_of_others(run: RunDirectory, config: RunConfig) -> str:
    """What the run of this configuration was made of and is not there now, in words: data, files
    that it read, code of somebody's own; "" if it would be made of the same again. What it has not
    recorded counts as the same."""
    own, events = own_code(config), run.events()
    with run.reading():
        codes = [
            f"the code of {key}"
            for key, now in own.items()
            if any(code.get("own", {}).get(key, now) != now for code in codes_of(events))
        ]
        return ", ".join(codes + _changed_files(run, config))


def _changed_files(run: RunDirectory, config: RunConfig) -> list[str]:
    """What the run read from files, and is another now than when it started."""
    words = {
        "data": f"the examples or the names of classes of {config.data_source}",
        "topology_file": f"the lines of {config.consensus.topology_file}",
        "schedule": "the jobs by replay, device-profiles and availability",
    }
    started = latest(run.events(), "run_started")
    told = {what: started[what] for what in words if what in started}
    if not told:
        return []
    now = _digests(config)
    return [words[what] for what, digest in told.items() if digest != now[what]]


def _changed(before: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> str:
    """What of the code is another than when the run was worked on last, in words."""
    last = before[-1] if before else now
    app = {"edge-fl's": last["fingerprint"] != now["fingerprint"]}
    own = {f"that of {key}": last.get("own", {}).get(key, d) != d for key, d in now["own"].items()}
    return ", ".join(name for name, differs in (app | own).items() if differs)


def _metric_of(config: RunConfig) -> dict[str, str]:
    """What the events' field "accuracy" is the value of, and which values are better."""
    metric = task_of(problem_of(config)).metric
    return {
        "name": metric.name,
        "unit": "%" if metric.percent else "",
        "direction": "higher" if metric.higher_is_better else "lower",
    }


def _digests(config: RunConfig) -> dict[str, str]:
    """The sha256 of what a run reads from files, besides its configuration."""
    text, schedule = topology_text(config), ""
    files = config.replay or config.device_profiles or config.availability
    if files and config.virtual and not config.agrees:
        schedule = repr(config.trace().aggregations)
    return {
        "data": task_of(problem_of(config)).digest,
        "topology_file": hashlib.sha256(text.encode()).hexdigest() if text else "",
        "schedule": hashlib.sha256(schedule.encode()).hexdigest() if schedule else "",
    }


def close_books(run: RunDirectory, config: RunConfig, status: str, reason: str) -> dict[str, Any]:
    """Record how the run ended; write summary.json, the figures and the report."""
    view = VIEWS[config.mode]
    for event in view.conclude(run.events(), config):
        run.emit(**event)
    run.emit("finished", status=status, reason=reason)
    return write_up(run, config)


def write_up(run: RunDirectory, config: RunConfig) -> dict[str, Any]:
    """Write summary.json, the figures and the report of a run with an end."""
    view, end = VIEWS[config.mode], latest(run.events(), "finished")
    measured = view.measure(run.events(), targets_of(config.flat()))
    seconds = measured.pop("end_seconds")
    summary = {
        "status": end["status"],
        "reason": end["reason"],
        "mode": config.mode,
        **view.settings(config.flat()),
        "clock": config.clock,
        "task": config.task,
        "metric": _metric_of(config)["name"],
        "dataset": config.dataset if config.of_images else None,
        "data": latest(run.events(), "run_started").get("data"),
        "partition": config.partition,
        "evaluate_on": config.evaluate_on,
        "participants": config.participants,
        "seed": config.seed,
        "code": codes_of(run.events()),
        **measured,
        **link_counts(run.events()),
        "virtual_seconds": seconds if config.virtual else None,
        "checksum": None if end["status"] == "diverged" else _checksum(run, view.checkpoint),
        "run_directory": str(run.path),
    }
    run.write_summary(summary)
    try:
        render(run)
    except NoPageError as error:
        say(f"no report: {error}")
    run.close()
    return summary


def _checksum(run: RunDirectory, name: str) -> str | None:
    """The sha256 of the final model's vectors; None when the run did not get that far."""
    try:
        return run.load_checkpoint(name)[1]["checksum"]
    except RunDirectoryError:
        return None
