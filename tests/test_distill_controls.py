"""The global model owes its accuracy to the participants, and to the distillation server's work.

Small runs on the embedded data in which one of the two contributes nothing: what is published falls
to what there would be without it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Message

from strategies.distillation.supervisor import DistillationServer
from strategies.messages.training import GRADIENT
from strategies.randomness import rng
from tests.harness import run

RUN = {"num-server-rounds": 3, "evaluate-examples": 500, "distill.batch-size": 64}
FEW = 10  # labels, one of each class: what they teach is little
# Ten classes, as many test images of each: who knows nothing has 0.1, and an untrained model may
# have a little more. Between two accuracies, so much is no difference here.
CHANCE, MARGIN = 0.2, 0.05

Harm = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def unchanged(start: np.ndarray, _: np.ndarray, __: int) -> np.ndarray:
    """The version that the participant started from, and the gradient of one that is right."""
    return start


def noise(start: np.ndarray, trained: np.ndarray, number: int) -> np.ndarray:
    """As far from it as the update was, in a direction that no image has to do with."""
    drawn = rng(0, "no update", number).standard_normal(start.shape).astype(np.float32)
    return start + drawn * np.float32(np.linalg.norm(trained - start) / np.linalg.norm(drawn))


def instead(harm: Harm) -> Any:
    """A tamperer that replaces every update of weights by what `harm` makes of it."""

    def tamper(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train.local":
            sent: Any = message.content["arrays"]
            came: Any = reply.content["arrays"]
            for number, key in enumerate(sorted(came)):
                name, trained = key.split(".")[0], came[key].numpy()
                start = np.zeros_like(trained) if name == GRADIENT else sent[name].numpy()
                change = unchanged if name == "buffers" else harm
                came[key] = Array(change(start, trained, number))
        return reply

    return tamper


def final(output: Path, labels: int, tamper: Any = None, **others: str) -> dict[str, float]:
    values = {"proxy-labelled-examples": labels, **others}
    return run(output, values, RUN, nodes=1, tamper=tamper)[0]["final"]


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return final(tmp_path_factory.mktemp("unlabelled"), 0)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return final(tmp_path_factory.mktemp("labelled"), FEW)


@pytest.mark.parametrize("harm", [unchanged, noise])
def test_without_participants_and_labels_nothing_is_known(
    harm: Harm, unlabelled: dict[str, float], tmp_path: Path
) -> None:
    harmed = final(tmp_path, 0, instead(harm))
    assert harmed["published"] < CHANCE
    assert harmed["small_average"] < CHANCE
    assert unlabelled["published"] > 2 * CHANCE


@pytest.mark.parametrize("harm", [unchanged, noise])
def test_without_participants_there_is_what_the_server_learns_alone(
    harm: Harm, labelled: dict[str, float], tmp_path: Path
) -> None:
    harmed = final(tmp_path, FEW, instead(harm))
    assert harmed["server_alone"] == labelled["server_alone"]  # a control of both
    assert harmed["published"] < harmed["server_alone"] + MARGIN
    assert labelled["published"] > labelled["server_alone"] + 2 * MARGIN


@pytest.mark.parametrize("lift", ["auto", "off"])  # both ways into the global model, and one alone
def test_without_reverse_steps_nothing_is_known(
    lift: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What participants know is in the small model, and nobody has brought it into the global."""
    unharmed = final(tmp_path / "unharmed", 0, **{"distill.lift": lift})
    monkeypatch.setattr(DistillationServer, "module", "tests.idle_worker")
    harmed = final(tmp_path / "harmed", 0, **{"distill.lift": lift})
    assert harmed["published"] < CHANCE
    assert harmed["small"] == unharmed["small"]
    assert unharmed["published"] > 2 * CHANCE
