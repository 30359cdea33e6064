"""Runs of the app for experiments: real `flwr run`s, and the same strategy without Flower."""

import contextlib
import json
import shlex
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fl_app.client_app import app as client_app
from fl_app.config import Value, resolve
from fl_app.launch.sizing import count_cores, count_gpus, simulation_size
from fl_app.launch.superlink import Link
from fl_app.launch.values import toml_lines
from fl_app.record.books import recorded
from fl_app.record.run_dir import RunDirectory
from fl_app.strategy import strategy_of
from strategies.errors import EdgeFlError

APP = Path(__file__).resolve().parents[1]
# A look at all processes takes its time from the run on a machine whose cores are all busy.
_POLL_SECONDS = 4.0
_STARTUP_SECONDS = 180.0


def federation(values: Mapping[str, Value], hosts: int = 0) -> dict[str, Value]:
    """Simulation settings for `hosts` SuperNodes; by default one a core, and a core is left to the
    distillation server where there is one.

    On two cores, clients on both would share one of them with the distillation server in the
    asynchronous variants and have it for themselves in the synchronous ones: the comparison would
    measure that, and not who waits for whom.
    """
    config = resolve(values)
    gpus = count_gpus(config.device)
    reserved = config.distill.gpu_fraction if config.distils else 0.0
    hosts = hosts or max(1, count_cores() - config.distils)
    return simulation_size(config.participants, hosts, gpus, reserved)


def command(values: Mapping[str, Value]) -> str:
    """The `flwr run` of `flower_run`, as one types it."""
    words = ["flwr", "run", ".", "--stream", "--run-config", _inline(values)]
    return shlex.join([*words, "--federation-config", _inline(federation(values))])


def _inline(values: Mapping[str, Value]) -> str:
    return " ".join(line.replace(" = ", "=", 1) for line in toml_lines(values))


def flower_run(
    link: Link,
    values: Mapping[str, Value],
    hosts: int = 0,
    watch: Callable[[RunDirectory | None], None] = lambda run: None,
) -> RunDirectory:
    """`flwr run` on a local SuperLink, until all of its processes have ended.

    values must have "output" and "name", which say where its run directory will be. `watch` is
    called every few seconds. The log is followed as `edge-fl run` follows it, but not shown.
    Raises EdgeFlError, with the reason, when the run does not complete.
    """
    path = Path(str(values["output"]), str(values["name"]))
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write("\n".join(toml_lines(values)))
        file.flush()
        size = _inline(federation(values, hosts))
        settings = ["--run-config", file.name, "--federation-config", size]
        run_id = str(link.ask("run", str(APP), link.connection, *settings)["run-id"])
    log: deque[str] = deque(maxlen=20)
    stream = link.flwr("log", run_id, link.connection, "--stream")
    threading.Thread(target=log.extend, args=(stream.stdout,), daemon=True).start()
    deadline, seen, run = time.monotonic() + _STARTUP_SECONDS, False, None
    try:
        while True:
            if run is None:
                with contextlib.suppress(EdgeFlError):
                    run = RunDirectory.open(path)
            watch(run)
            alive = bool(link.serverapp_pids())
            if (seen and not alive) or (not seen and time.monotonic() > deadline):
                break
            seen = seen or alive
            time.sleep(_POLL_SECONDS)
    finally:
        stream.kill()
        stream.wait()
    if run is None or run.summary().get("status") != "completed":
        reason = run.summary().get("reason") if run else ""
        raise EdgeFlError(f"{path.name} did not complete: {reason or ''.join(log)}")
    return run


def in_process_run(values: Mapping[str, Value]) -> RunDirectory:
    """The same strategy and ClientApp in this process, and the distillation server in its own.

    On the virtual clock the result is that of a `flwr run`, bit for bit, without its start-up of
    ten processes. Raises what the run raises.
    """
    import torch

    torch.set_num_threads(1)
    config = resolve(values)
    with recorded(config) as run:
        strategy_of(config, run).start(OneNodeGrid(values))
    return run


class OneNodeGrid(Grid):
    """One node, in this process: a message is answered while it is sent."""

    def __init__(self, run_config: Mapping[str, Value]) -> None:
        # Flower sets these in the process of a ServerApp; a Message can be made only then.
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        node = {"partition-id": 0, "num-partitions": 1}
        flat = resolve(run_config).flat()
        self._context = Context(1, 1, node, RecordDict(), flat)  # type: ignore[arg-type]
        self._sent = 0
        self._replies: dict[str, Message] = {}

    def set_run(self, run) -> None:
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [1]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._sent += 1
            message_id = str(self._sent)
            message.metadata.__dict__["_message_id"] = message_id
            self._replies[message_id] = client_app(message, self._context)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = [i for i in message_ids if i in self._replies]
        return [self._replies.pop(i) for i in found]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None):
        raise NotImplementedError("the strategies push and pull")


def say(line: str) -> None:
    """Progress, beside what is printed as a result."""
    print(line, file=sys.stderr, flush=True)


def hardware(environment: Mapping[str, object]) -> dict[str, object]:
    """What a run ran on, out of the environment that it recorded."""
    keys = ("cpu", "cpus_usable", "memory_bytes", "gpu", "platform", "python", "packages")
    return {key: environment.get(key) for key in keys}


def load_json(path: Path) -> dict:
    return json.loads(path.read_text())
