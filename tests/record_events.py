"""Plausible events of a distill run, made up without training, for the tests of fl_app/record."""

import math
from typing import Any

import numpy as np

from fl_app.record.run_dir import RunDirectory

DOWNLOAD, COMPUTE, UPLOAD, REVERSE = 0.11, 10.0, 0.11, 3.2  # seconds
STEPS, BYTES = 20, 72_136


def distill_events(
    rounds: int = 20, participants: int = 3, *, sync: bool = False, seed: int = 0
) -> list[dict[str, Any]]:
    """The events of a run: continuous distillation, or (`sync`) one where everybody waits."""
    generator = np.random.default_rng(seed)
    speeds = 1 + 0.15 * generator.random(participants)
    events: list[dict[str, Any]] = []

    def add(event: str, **fields: Any) -> None:
        events.append({"event": event, **fields})

    t, steps, segment = 0.0, 0, 0
    for number in range(1, rounds + 1):
        ends = []
        for participant in range(participants):
            compute = t + DOWNLOAD
            upload = compute + COMPUTE * speeds[participant] * (1 + 0.05 * generator.random())
            ends.append(upload + UPLOAD)
            lost = participant == 1 and number == 4
            add(
                "job", job=(number - 1) * participants + participant, participant=participant,
                base_version=number - 1, t_start=t, t_compute=compute, t_upload=upload,
                t_end=ends[-1], status="lost" if lost else "ok", loss=None if lost else 2 / number,
                examples=5120, host=participant % 2,
            )  # fmt: skip
        averaged = done = max(ends)
        if sync:
            done = averaged + REVERSE
        if sync or number > 1:
            work = STEPS if sync else 3 * STEPS
            add(
                "segment", segment=segment, kind="reverse", steps=work, t_end=done,
                t_start=averaged if sync else t, teacher_version=number if sync else number - 1,
                staleness_versions=0 if sync else int(generator.random() < 0.2),
            )  # fmt: skip
            segment, steps = segment + 1, steps + work
        for participant, end in enumerate(ends):
            waits = [("clients", end, averaged), ("server", averaged, done)]
            for waiting_for, start, stop in waits:
                if start < stop:
                    add("idle", participant=participant, t_start=start, t_end=stop,
                        waiting_for=waiting_for)  # fmt: skip
        if number == 6:
            add("rejected", participant=2, round=6, reason="weights has NaN")
            add("skipped", version=6)
            add("warning", message="participant 2 <sent> NaN")
        add(
            "round", round=number, t=done, staleness=0.0, rejected=int(number == 6),
            contributions=participants - (number == 4), lost=int(number == 4),
            bytes_up=number * participants * BYTES, bytes_down=number * participants * BYTES,
            worker_steps=steps, teacher_version=number - 1,
        )  # fmt: skip
        noise = 0.02 * generator.standard_normal(2)
        small = 0.7 - 0.6 * math.exp(-number / 6) + noise[0] / 2
        large = 0.75 - 0.65 * math.exp(-steps / 500)
        shared = {"round": number, "t": done, "loss": 2.3 / number, "step": steps}
        add("evaluate", model="small", accuracy=small, accuracy_ema=None, teacher_version=number,
            **shared)  # fmt: skip
        add("evaluate", model="global", accuracy=large + noise[1], accuracy_ema=large,
            published="ema", teacher_version=number - 1, **shared)  # fmt: skip
        t = done
    return events


def config(rounds: int = 20, participants: int = 3, variant: str = "async-plus") -> dict[str, Any]:
    """The flat configuration that goes with `distill_events`."""
    return {
        "mode": "distill", "clock": "virtual", "dataset": "fashion-mnist", "seed": 0,
        "participants": participants, "num-server-rounds": rounds, "averaging": "fedavg",
        "targets": "0.5,0.55,0.6,0.65", "distill.variant": variant,
    }  # fmt: skip


def fill(run: RunDirectory, events: list[dict[str, Any]], status: str = "completed") -> None:
    """Emit `events` between the start and the end of a run."""
    run.emit("run_started", config=run.config())
    for event in events:
        run.emit(**event)
    run.emit("finished", status=status)
    run.close()
