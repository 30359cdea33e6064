"""Opening and closing a run's record: the directory at the start, the summary at the end."""

from collections import defaultdict
from typing import Any

from fl_app.config import RunConfig
from fl_app.errors import ConfigError, RunDirectoryError
from fl_app.record.metrics import measure, of_kind
from fl_app.record.report import render
from fl_app.record.run_dir import RunDirectory, runs_root
from fl_app.record.sinks import SINKS, console_listener
from strategies.schedule import Aggregation, Idle, Job, idle_times

# Keys that may differ when a run is resumed: they do not change what is computed.
_FREE_ON_RESUME = {"resume", "output", "name", "sinks", "data-root", "checkpoint-every"}


def open_books(config: RunConfig) -> RunDirectory:
    """The run's directory, new or resumed, with its listeners.

    Raises ConfigError when a resumed run's configuration is another one or it is complete already,
    RunDirectoryError when a directory cannot be made or read.
    """
    if config.resume:
        run = RunDirectory.open(config.resume)
        _check_resumable(run, config)
    else:
        run = RunDirectory.create(runs_root(config.output), config.flat(), name=config.name)
    published = "global" if config.distils else "small"
    rounds = config.num_server_rounds
    run.listeners.append(console_listener(clock=config.clock, rounds=rounds, published=published))
    run.listeners += [SINKS[name](run) for name in config.sink_list]
    if not config.resume:
        run.emit("run_started", config=config.flat())
    return run


def _check_resumable(run: RunDirectory, config: RunConfig) -> None:
    if run.summary().get("status") == "completed":
        raise ConfigError(f"resume={config.resume!r}: that run has completed; start a new one")
    before, now = run.config(), config.flat()
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


def close_books(run: RunDirectory, config: RunConfig, status: str, reason: str) -> dict[str, Any]:
    """Record how the run ended; write summary.json, the figures and the report."""
    events = run.events()
    for idle in _idle(events, config):
        run.emit(
            "idle",
            participant=idle.participant,
            t_start=idle.t_start,
            t_end=idle.t_end,
            waiting_for=idle.waiting_for,
        )
    run.emit("finished", status=status, reason=reason)
    measured = measure(run.events(), config.target_list)
    seconds = measured.pop("end_seconds")
    summary = {
        "status": status,
        "reason": reason,
        "mode": config.mode,
        "variant": config.distill.variant if config.distils else None,
        "averaging": config.averaging,
        "clock": config.clock,
        "dataset": config.dataset,
        "partition": config.partition,
        "participants": config.participants,
        "seed": config.seed,
        **measured,
        "virtual_seconds": seconds if config.virtual else None,
        "checksum": _checksum(run, "global" if config.distils else "small"),
        "run_directory": str(run.path),
    }
    run.write_summary(summary)
    render(run)
    run.close()
    return summary


def _idle(events: list[dict[str, Any]], config: RunConfig) -> tuple[Idle, ...]:
    """Idle times as the recorded jobs tell them, those of before a resumption included."""
    times = {event["round"]: event["t"] for event in of_kind(events, "round")}
    by_round: dict[int, list[Job]] = defaultdict(list)
    for event in of_kind(events, "job"):
        moments = (event[name] for name in ("t_start", "t_compute", "t_upload", "t_end"))
        job = Job(event["participant"], event["job"], event["base_version"], *moments)
        by_round[event["round"]].append(job)
    aggregations = [
        Aggregation(round_, times[round_], tuple(jobs))
        for round_, jobs in sorted(by_round.items())
        if round_ in times
    ]
    return idle_times(aggregations, config.participants, rounds=not config.buffered)


def _checksum(run: RunDirectory, name: str) -> str | None:
    """The sha256 of the final model's vectors; None when the run did not get that far."""
    try:
        return run.load_checkpoint(name)[1]["checksum"]
    except RunDirectoryError:
        return None
