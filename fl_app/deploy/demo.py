"""`edge-fl deploy demo`: a deployment on this machine, both systems on it, and a device that dies.

Everything is real: a SuperLink, four SuperNodes with keys of their own, TLS everywhere, the mail
router, `edge-fl run`, and SIGKILL. Only the network between the machines is this machine's own.
"""

import os
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from fl_app.config import Value, resolve
from fl_app.deploy.loopback import Loopback
from fl_app.launch.run import FAILED
from fl_app.launch.run import run as edge_fl_run
from fl_app.launch.signals import Stopped, go_on, stop
from fl_app.launch.sizing import count_cores
from fl_app.launch.supervise import heed
from fl_app.problem import problem_of
from fl_app.record.formatting import duration, megabytes, share
from fl_app.record.metrics import of_kind
from fl_app.record.modes import view_of
from fl_app.record.run_dir import METRICS, RunDirectory
from strategies.errors import EdgeFlError
from strategies.link.transport import import_zenoh
from strategies.paths import runs_root
from strategies.site import SERVER

DEVICES = ("pi-1", "pi-2", "pi-3", "pi-4")
VICTIM = "pi-2"
# Flower lets the victim in again after 60 s, and then it has to be seen at work; meanwhile the
# others have its share of the cores and are faster than was planned.
CONSENSUS_SECONDS = 140.0
WINDOWS = 30
ROUNDS = 10
_BEFORE_THE_CUT = 2  # windows
_TRIAL_STEPS = 60
_POLL_SECONDS = 0.5

COMMON: dict[str, Value] = {"clock": "real", "participants": len(DEVICES), "link-patience": 20.0}
CONSENSUS: dict[str, Value] = {**COMMON, "mode": "consensus", "consensus.references": ""}
DISTILL: dict[str, Value] = {**COMMON, "mode": "distill", "num-server-rounds": ROUNDS}


def demo() -> int:
    """Run it, and tell what happens; returns the exit code: 0 if both runs have completed, the
    device that was killed has worked again, and no process is left. Raises EdgeFlError when the
    deployment does not start.
    """
    import_zenoh()
    heed(stop)
    place = Path(tempfile.mkdtemp(prefix="edge-fl-demo-"))
    log = _Story()
    code = FAILED
    try:
        code = _tell(place, log)
    except Stopped as stopped:
        log(f"{stopped}: everything that was started is being ended")
        code = stopped.code
    finally:
        if code == 0:
            shutil.rmtree(place, ignore_errors=True)
        else:
            print(f"edge-fl: what every machine has printed is in {place}/*.log", flush=True)
    return code


class _Story:
    """Says what happens, with the time since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        first, *rest = text.split("\n")
        print(f"[{duration(time.monotonic() - self._began):>5}] {first}", flush=True)
        for line in rest:
            print(f"        {line}".rstrip(), flush=True)


def _tell(place: Path, log: _Story) -> int:
    stamp = f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    log(
        f"a server and {len(DEVICES)} devices on this machine: their certificates and keys, a "
        f"SuperLink,\nSuperNodes that sign every request; all in {place}"
    )
    environment = {"EDGE_FL_HOME": str(runs_root().parent), "OMP_NUM_THREADS": "1"}
    with Loopback(place, DEVICES, environment=environment) as site:
        os.environ |= site.environment
        log(f"on line, over TLS: {', '.join(site.online())}\n")
        values = {**CONSENSUS, **_size(), "name": f"{stamp}-consensus"}
        cut = _PowerCut(site, values, log)
        log(
            f"first run, consensus: there is no central model; every device trains its own on its "
            f"own images\nand exchanges with its two neighbours in a ring. After window "
            f"{_BEFORE_THE_CUT} {VICTIM} loses its power."
        )
        with cut:
            code = _run(site, values)
        log(f"{cut.outcome}\n")
        if code == 0:
            log(
                "second run, distill: the devices train a small model, and beside them the server "
                "trains a large\none with what it has learnt from them, and teaches them with it."
            )
            code = _run(site, {**DISTILL, "name": f"{stamp}-distill"})
            cut.look_again(completed=code == 0)
        pids = [pid for name in (SERVER, *DEVICES) for pid in site.pids(name)]
        log(f"ending the {len(pids)} processes of the deployment")
    left = [pid for pid in pids if Path("/proc", str(pid)).exists()]
    log(f"still there: {left}\n" if left else "all of them have ended\n")
    runs = [run for run in _runs(stamp) if run.summary()]
    print("\n".join(_table(runs)))
    print(cut.outcome)
    return code or (0 if cut.back and not left else FAILED)


def _run(site: Loopback, values: Mapping[str, Value]) -> int:
    words = [f"{key}={value}" for key, value in values.items()]
    print("        " + shlex.join(["edge-fl", "run", "--superlink", site.connection, *words]))
    code = edge_fl_run(values, superlink=site.connection)
    go_on()  # the demo does, and can be interrupted
    return code


def _runs(stamp: str) -> list[RunDirectory]:
    """The demo's runs, in their order."""
    places = [runs_root() / f"{stamp}-{mode}" for mode in ("consensus", "distill")]
    return [RunDirectory.open(place) for place in places if place.is_dir()]


class _PowerCut:
    """While the context lasts: waits for some windows of a run, cuts a device's power, switches it
    on again, and looks whether it comes back. `outcome` tells how that went."""

    def __init__(self, site: Loopback, values: Mapping[str, Value], log: _Story) -> None:
        self._site, self._log = site, log
        self._place = runs_root() / str(values["name"])
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.back = self._killed = False
        self.outcome = f"{VICTIM} has not been killed: the run was over before"

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def look_again(self, *, completed: bool) -> None:
        """After another run, which has not `completed` without the victim."""
        if self._killed and completed and not self.back:
            self.back = True
            self.outcome = f"{VICTIM} was back too late for the first run, and worked in the second"

    def _work(self) -> None:
        try:
            if not self._until(lambda worked: len(worked) >= _BEFORE_THE_CUT):
                return
            killed = len(self._site.pids(VICTIM))
            self._site.kill(VICTIM)
            self._killed = True
            cut = time.monotonic()
            self._site.start(VICTIM)
            self._log(
                f"{VICTIM}: kill -9 to all of its {killed} processes; it is switched on again at "
                f"once.\nFlower lets it in when 60 s have passed; the others go on without it"
            )
            self.outcome = f"{VICTIM} was killed and has not come back"
            # It is missing in a window, and later it is not.
            missed = self._until(lambda worked: not worked[-1])
            if missed and self._until(lambda worked: worked[-1]):
                self.back = True
                seconds = time.monotonic() - cut
                self.outcome = (
                    f"{VICTIM} is back: {seconds:.0f} s after its power was cut it had done a "
                    f"window again"
                )
                self._log(self.outcome)
        except (EdgeFlError, OSError) as error:
            self.outcome = f"{VICTIM} could not be killed and started: {error}"

    def _until(self, condition: Callable[[list[bool]], bool]) -> bool:
        """Wait until `condition` holds of in which windows the victim has worked; False if the run
        is over before."""
        over = False
        while not over:
            over = self._over.wait(_POLL_SECONDS)
            if (self._place / METRICS).exists():
                windows = of_kind(RunDirectory(self._place).events(), "nodes")
                position = DEVICES.index(VICTIM)
                worked = [event["accuracy"][position] is not None for event in windows]
                if worked and condition(worked):
                    return True
        return False


def _size() -> dict[str, Value]:
    """As many local steps as take CONSENSUS_SECONDS on this machine, in windows."""
    config = resolve(CONSENSUS)
    each = _step_seconds(config.consensus.batch_size) * max(1.0, len(DEVICES) / count_cores())
    window = max(20, round(CONSENSUS_SECONDS / WINDOWS / each))
    return {"consensus.window": window, "consensus.steps": WINDOWS * window}


def _step_seconds(batch_size: int) -> float:
    """What a local step takes at least on one core."""
    import torch

    from client_apps.gradients import Gradients
    from client_apps.local_model import local_model_of, shard_of
    from strategies.consensus.node import Node

    config = resolve(CONSENSUS)
    torch.set_num_threads(1)
    local = local_model_of(problem_of(config))
    gradients = Gradients(
        local.model,
        {0: shard_of(problem_of(config), 0, "")},
        {0: batch_size},
        seed=0,
        prepare=local.task.prepare(config.consensus.augment),
        loss=local.task.loss,
    )
    node = Node(0, local.model.weights.clone())
    moments = [time.monotonic() for _ in gradients([(node, n) for n in range(_TRIAL_STEPS)])]
    # The shortest: others may be at work on this machine now, and gone later.
    return min(after - before for before, after in pairwise(moments))


def _table(runs: Sequence[RunDirectory]) -> list[str]:
    """The summaries of some runs side by side."""
    columns = [_column(run) for run in runs]
    titles = list(columns[0]) if columns else []
    rows = [[title, *(column[title] for column in columns)] for title in titles]
    widths = [max(len(cell) for cell in cells) for cells in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [*lines, *(f"report, summary, models: {run.path}" for run in runs)]


def _column(run: RunDirectory) -> dict[str, str]:
    s: dict[str, Any] = run.summary()
    view = view_of(run.config())
    if s["mode"] == "consensus":
        sent = f"{s['messages']} mails, {megabytes(s['bytes'])} MB, over {s['carrier']}"
    else:
        sent = f"{megabytes(s['bytes_up'])} MB up, {megabytes(s['bytes_down'])} MB down"
    return {
        "what came out": s["mode"],
        "status": s["status"],
        "time": duration(s["wall_seconds"]),
        "windows, rounds": str(s["rounds"]),
        "final accuracy": f"{share(s['final'][view.headline])}, {view.accuracy_of}",
        "sent": sent,
        "rejected": str(s["rejected"]),
        "processes": ", ".join(f"{name} {n}" for name, n in (s.get("processes") or {}).items()),
        "router restarts": str(s.get("router_restarts")),
    }
