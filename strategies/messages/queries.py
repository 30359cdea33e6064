"""What nodes are asked before a run, and what they answer; and the session that a device serves."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hello:
    """Who a node is, and which code it runs. partition_id: its place in a simulation, or -1 on a
    device. name: of a device. code: where its code is."""

    partition_id: int
    name: str
    fingerprint: str
    code: str


@dataclass(frozen=True)
class PrepareOrder:
    """Load the model and the data of these participants. data: the digest of the run's data set.
    code: that of code of somebody's own.

    Of the consensus system, topology: the content of its file, and states: of how many windows'
    ends a node's state is kept; 0 in the distill system.
    """

    participants: list[int]
    data: str
    topology: str = ""
    states: int = 0
    code: str = ""


@dataclass(frozen=True)
class Prepared:
    """fault: "" or what is wrong with them, or with the device. examples: how many each has.
    unused: what of the device's own data is not read. condition: of a device, how it is."""

    fault: str
    examples: list[int]
    unused: list[str] = field(default_factory=list)
    condition: dict[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True)
class MeetOrder:
    """Wait at the broker, as number `host`, until `hosts` are there or `patience` seconds are over.
    broker: the access to it."""

    broker: str
    host: int
    hosts: int
    patience: float


@dataclass(frozen=True)
class Met:
    """here: how many hosts were there at one time."""

    here: int


@dataclass(frozen=True)
class EngineOrder:
    """Find the fastest engine of gradients for these nodes."""

    nodes: list[int]


@dataclass(frozen=True)
class FastestEngine:
    """gain: how many times as fast as "sequential" it is, 0 where that was not measured."""

    engine: str
    gain: float


@dataclass(frozen=True)
class Invitation:
    """Serve the orders of a run over the mail router. run: its token. patience: seconds of silence
    after which the server is given up. names: of the devices that take part."""

    run: str
    patience: float
    names: list[str]


@dataclass(frozen=True)
class SessionEnd:
    """name: of the device. served: how many orders it has done. why: "" or what has kept it from
    taking part at all."""

    name: str
    served: int
    why: str
