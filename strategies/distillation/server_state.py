"""What the averaging server keeps of a run to go on with it as if nothing had happened."""

from dataclasses import asdict, dataclass, field

from strategies.averaging import Vectors
from strategies.problem import Problem, flat_model
from strategies.recorder import Recorder

CHECKPOINT = "server"


@dataclass
class Counters:
    """jobs: how many the record has, segments: of the distillation server, likewise. bytes_up,
    bytes_down: of these jobs' models."""

    jobs: int = 0
    segments: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass
class ServerState:
    """version: the newest, made at t. versions: that one and those that jobs still start from.
    average: of all versions; calibrated: of those that are; newest_calibrated: the last of these.
    rule: what the averaging rule remembers. pending: by the name of a model, what was to be
    evaluated, by round. next_index: of every participant's next job, on the real clock."""

    version: int
    t: float
    versions: dict[int, Vectors]
    average: Vectors
    rule: Vectors
    calibrated: Vectors
    newest_calibrated: Vectors
    pending: dict[str, dict[int, Vectors]]
    next_index: list[int] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)

    def save(self, recorder: Recorder) -> None:
        tensors = {
            f"version.{version}.{name}": vector
            for version, vectors in self.versions.items()
            for name, vector in vectors.items()
        }
        tensors |= {f"average.{name}": vector for name, vector in self.average.items()}
        tensors |= {f"rule.{name}": vector for name, vector in self.rule.items()}
        tensors |= {f"calibrated.{name}": vector for name, vector in self.calibrated.items()}
        newest = self.newest_calibrated
        tensors |= {f"newest_calibrated.{name}": vector for name, vector in newest.items()}
        tensors |= {
            f"pending_{model}.{round_}.{name}": vector
            for model, rounds in self.pending.items()
            for round_, vectors in rounds.items()
            for name, vector in vectors.items()
        }
        metadata = {
            "version": self.version,
            "t": self.t,
            "next_index": self.next_index,
            **asdict(self.counters),
        }
        recorder.save_checkpoint(CHECKPOINT, tensors, metadata)

    @classmethod
    def load(cls, recorder: Recorder, models: tuple[str, ...]) -> "ServerState":
        """models: the names of those that may have been pending."""
        tensors, metadata = recorder.load_checkpoint(CHECKPOINT)
        return cls(
            version=metadata["version"],
            t=metadata["t"],
            versions=_numbered(tensors, "version"),
            average=_part(tensors, "average"),
            rule=_part(tensors, "rule"),
            calibrated=_part(tensors, "calibrated"),
            newest_calibrated=_part(tensors, "newest_calibrated"),
            pending={model: _numbered(tensors, f"pending_{model}") for model in models},
            next_index=metadata["next_index"],
            counters=Counters(**{name: metadata[name] for name in vars(Counters())}),
        )


def saved_version(recorder: Recorder) -> int | None:
    """The newest version of a run that was saved; None if none was."""
    if not recorder.has_checkpoint(CHECKPOINT):
        return None
    return recorder.load_checkpoint(CHECKPOINT)[1]["version"]


def save_model(recorder: Recorder, problem: Problem, role: str, vectors: Vectors) -> None:
    """Save a final model as a file of its own, with what is needed to build it again."""
    model = flat_model(problem, role)
    model.load(vectors["weights"], vectors["buffers"])
    metadata = {"role": role, "schema": model.schema(), "checksum": model.checksum()}
    recorder.save_checkpoint("global" if role == "large" else role, vectors, metadata)


def _numbered(tensors: Vectors, prefix: str) -> dict[int, Vectors]:
    """{number: {name: vector}} of the tensors "prefix.number.name"."""
    result: dict[int, Vectors] = {}
    for key, vector in _part(tensors, prefix).items():
        number, name = key.split(".")
        result.setdefault(int(number), {})[name] = vector
    return result


def _part(tensors: Vectors, prefix: str) -> Vectors:
    start = f"{prefix}."
    return {key.removeprefix(start): v for key, v in tensors.items() if key.startswith(start)}
