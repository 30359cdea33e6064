"""A participant as named arrays and plain data, and back: what a checkpoint of it holds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from strategies.consensus.algorithm import Algorithm
from strategies.consensus.node import AVERAGE, Node, Tensors
from strategies.consensus.participant import Mail, Participant, Tally
from strategies.errors import ConfigError


def pack(participant: Participant) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, JSON metadata) from which `unpack` makes the same participant, to the bit."""
    node = participant.node
    tensors = {"weights": node.weights}
    tensors |= {f"vector/{name}": v for name, v in node.vectors.items()}
    for j, link in node.links.items():
        tensors |= {f"link/{j}/{name}": v for name, v in link.items()}
    for (sender, seq), mail in participant.mail.items():
        tensors |= {f"mail/{sender}/{seq}/{name}": v for name, v in mail.vectors.items()}
    for number, (_, mail) in enumerate(participant.late):
        tensors |= {f"late/{number}/{name}": v for name, v in mail.vectors.items()}
    metadata = {
        "index": node.index,
        "links": list(node.links),  # in their order, in which they are summed
        "received": list(participant.received.items()),
        "heard": list(participant.heard.items()),
        "rate": participant.rate,
        "cursor": participant.cursor,
        "mail": [[m.sender, m.seq, m.sent] for m in participant.mail.values()],
        "late": [[t, m.receiver, m.seq, m.sent] for t, m in participant.late],
        "settles": participant.settles,
        "tally": vars(participant.tally),
    }
    return {name: _array(name, v) for name, v in tensors.items()}, metadata


def _array(name: str, tensor: torch.Tensor) -> np.ndarray:
    try:
        return tensor.detach().cpu().numpy()
    except TypeError as error:
        raise ConfigError(
            f"a node's {name.removeprefix('vector/')!r} is of {tensor.dtype}, which cannot be kept "
            f"in a checkpoint: let the algorithm hold float32"
        ) from error


def published(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The model (p,) that a packed node gives away; see `Node.published`."""
    return arrays.get(f"vector/{AVERAGE}", arrays["weights"])


def unpack(
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    algorithm: Algorithm,
    *,
    neighbours: tuple[int, ...],
    weight: float,
    device: str = "cpu",
) -> Participant:
    """The participant that was packed, with its place in the topology and its weight p_i."""

    def tensor(name: str, array: np.ndarray) -> torch.Tensor:
        number = name.startswith("link/") and array.size == 1  # see `Node`
        return torch.from_numpy(array.copy()).to("cpu" if number else device)

    tensors = {name: tensor(name, array) for name, array in arrays.items()}

    def part(prefix: str) -> Tensors:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    index = metadata["index"]
    links = {int(j): part(f"link/{j}/") for j in metadata["links"]}
    mail = {
        (sender, seq): Mail(sender, index, seq, part(f"mail/{sender}/{seq}/"), sent)
        for sender, seq, sent in metadata["mail"]
    }
    late = [
        (t, Mail(index, receiver, seq, part(f"late/{number}/"), sent))
        for number, (t, receiver, seq, sent) in enumerate(metadata["late"])
    ]
    return Participant(
        Node(index, tensors["weights"], part("vector/"), links),
        algorithm,
        neighbours,
        weight,
        metadata["rate"],
        {int(j): int(seq) for j, seq in metadata["received"]},
        {int(j): float(t) for j, t in metadata["heard"]},
        metadata["cursor"],
        mail,
        late,
        Tally(**metadata["tally"]),
        metadata.get("settles", False),
    )


def size_of(algorithm: Algorithm, node: int, parameters: int) -> tuple[int, int]:
    """(bytes of all that a node keeps, bytes of a mail from each of its neighbours), for models of
    so many parameters. Nothing of that size is made."""
    made = Node(node, torch.empty(parameters, device="meta"))
    algorithm.start(made)
    vectors = [made.weights, *made.vectors.values()]
    vectors += [vector for link in made.links.values() for vector in link.values()]
    mails = [algorithm.lengths(parameters, j, node, 0).values() for j in made.links]
    return (
        sum(vector.nbytes for vector in vectors),
        sum(length * dtype.itemsize for mail in mails for length, dtype in mail),
    )
