"""Optional listeners of a run's events: TensorBoard, Weights & Biases, MLflow."""

import os
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

from fl_app.record.consensus_metrics import node_spread
from fl_app.record.console import Listener
from fl_app.record.metrics import Event
from fl_app.record.run_dir import RunDirectory, flatten
from strategies.checkpoint import atomic_write
from strategies.checks import last_line
from strategies.errors import RunDirectoryError
from strategies.paths import runs_root
from strategies.pyproject import install

_PROJECT = "edge-fl"
_WANDB_ID, _MLFLOW_ID = "wandb-id", "mlflow-id"  # files of the run directory
_MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"


def scalars(event: Event) -> dict[str, float]:
    """Return what an event adds to a dashboard: {"accuracy/small": 0.41, "round/bytes_up": ...}."""
    values = _SCALARS[event["event"]](event) if event["event"] in _SCALARS else {}
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def _evaluation(event: Event) -> dict[str, Any]:
    model = event["model"]
    return {
        f"accuracy/{model}": event["accuracy"],
        f"accuracy/{model}_ema": event.get("accuracy_ema"),
        f"loss/{model}": event.get("loss"),
    }


def _round(event: Event) -> dict[str, Any]:
    return {f"round/{k}": v for k, v in event.items() if k not in ("event", "round", "t_wall")}


def _nodes(event: Event) -> dict[str, Any]:
    # Their spread alone: hundreds of curves would bury a dashboard.
    references = event.get("reference") or {}
    return {f"accuracy/node_{k}": v for k, v in node_spread(event).items()} | {
        f"accuracy/centralized_{name}": value for name, value in references.items()
    }


_SCALARS: dict[str, Callable[[Event], dict[str, Any]]] = {
    "evaluate": _evaluation,
    "round": _round,
    "nodes": _nodes,
}


def tensorboard_listener(run: RunDirectory) -> Listener:
    """Return a listener that writes TensorBoard scalars, by round, to <run>/tensorboard.

    A resumed run goes on there; what it had logged of rounds that it does again is forgotten.
    Raises RunDirectoryError with the way out when TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise RunDirectoryError(_missing("tensorboard")) from error
    place = str(run.path / "tensorboard")
    writer = SummaryWriter(place)

    def listen(event: Event) -> None:
        nonlocal writer
        if event["event"] == "resumed":
            writer.close()
            writer = SummaryWriter(place, purge_step=event.get("round", 0) + 1)
        for name, value in scalars(event).items():
            writer.add_scalar(name, value, event["round"])
        if event["event"] in ("round", "finished"):
            writer.flush()

    return listen


def wandb_listener(run: RunDirectory) -> Listener:
    """Return a listener that logs to a W&B run named like `run` in the project "edge-fl".

    Account, mode and server follow W&B's own environment variables (WANDB_MODE=offline ...). A
    resumed run goes on in its W&B run, whose id is in the run directory. Raises RunDirectoryError
    with the way out when W&B is not installed.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RunDirectoryError(_missing("wandb")) from error
    known = run.path / _WANDB_ID
    session = wandb.init(
        project=_PROJECT,
        name=run.name,
        dir=str(run.path),
        config=flatten(run.config()),
        id=known.read_text().strip() if known.exists() else None,
        resume="allow",
    )
    atomic_write(known, session.id.encode())
    # W&B drops what is logged for an earlier step, and evaluations arrive late: round is the axis.
    session.define_metric("*", step_metric="index")

    def listen(event: Event) -> None:
        if values := scalars(event):
            session.log({**values, "index": event["round"]})
        elif event["event"] == "finished":
            session.finish(exit_code=0 if event["status"] == "completed" else 1)

    return listen


def mlflow_listener(run: RunDirectory) -> Listener:
    """Return a listener that logs to an MLflow run named like `run` in the experiment "edge-fl".

    Where that is follows MLflow's own environment variable, MLFLOW_TRACKING_URI; without it, it is
    the file mlflow.db beside the runs: MLflow's own choice, the working directory, is a temporary
    one here. A resumed run goes on in its MLflow run, whose id is in the run directory. Raises
    RunDirectoryError with the way out when MLflow is not installed.
    """
    try:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RunDirectoryError(_missing("mlflow")) from error
    client, known = MlflowClient(_mlflow_place()), run.path / _MLFLOW_ID
    if known.exists():
        identity = known.read_text().strip()
        client.update_run(identity, status="RUNNING")
    else:
        experiment = client.get_experiment_by_name(_PROJECT)
        among = experiment.experiment_id if experiment else client.create_experiment(_PROJECT)
        identity = client.create_run(among, run_name=run.name).info.run_id
        atomic_write(known, identity.encode())
        for key, value in flatten(run.config()).items():
            client.log_param(identity, key, value)

    def listen(event: Event) -> None:
        for name, value in scalars(event).items():
            client.log_metric(identity, name, value, step=event["round"])
        if event["event"] == "finished":
            status = "FINISHED" if event["status"] == "completed" else "FAILED"
            client.set_terminated(identity, status)

    return listen


def _mlflow_place() -> str | None:
    """Where MLflow is to write; None where its own variable says it."""
    if os.environ.get(_MLFLOW_VARIABLE):
        return None
    home = runs_root().parent
    home.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{home / 'mlflow.db'}"


def check_sinks(names: Iterable[str]) -> None:
    """Raise RunDirectoryError if a sink's package, which has its name, is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise RunDirectoryError(_missing(name))
    lone = "mlflow" in names and not os.environ.get(_MLFLOW_VARIABLE)
    if lone and find_spec("sqlalchemy") is None:
        raise RunDirectoryError(
            f"sinks='mlflow' needs a server, named by {_MLFLOW_VARIABLE}, or all of MLflow, which "
            "writes a file of its own: pip install mlflow"
        )


def attach_sinks(run: RunDirectory, names: Iterable[str]) -> None:
    """Have the sinks listen to the run. One that cannot begin, because nobody is logged in or its
    server does not answer, is named in a warning: no dashboard is worth a training run.

    Raises RunDirectoryError for one that is not installed.
    """
    for name in names:
        try:
            run.listeners.append(SINKS[name](run))
        except RunDirectoryError:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {last_line(str(error))}"
            run.emit("warning", message=f"nothing goes to {name}: {told}")


def _missing(extra: str) -> str:
    return f"sinks={extra!r} needs an optional package: {install(extra)}"


# The optional sinks by the names that the configuration knows.
SINKS: dict[str, Callable[[RunDirectory], Listener]] = {
    "mlflow": mlflow_listener,
    "tensorboard": tensorboard_listener,
    "wandb": wandb_listener,
}
