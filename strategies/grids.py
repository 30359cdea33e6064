"""Grids around Flower's, for apps whose run configuration has none of our keys."""

import json
import time
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fl_app.fingerprint import fingerprint
from fl_app.models import FlatModel

_LOSSES = ("train_loss", "train-loss", "loss")
SETTINGS = "settings"  # the record of a message that has them


class Around(Grid):
    """A grid that passes everything on to another one."""

    def __init__(self, grid: Grid) -> None:
        self.inner = grid

    def set_run(self, *arguments: Any, **options: Any) -> None:
        self.inner.set_run(*arguments, **options)

    @property
    def run(self) -> Any:
        return self.inner.run

    def create_message(self, *arguments: Any, **options: Any) -> Message:
        return self.inner.create_message(*arguments, **options)

    def get_node_ids(self) -> Iterable[int]:
        return self.inner.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        return self.inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self.inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], **options: Any) -> Iterable[Message]:
        return self.inner.send_and_receive(messages, **options)


class SettingsGrid(Around):
    """Gives every message the settings of the run along; see `client_apps.mount`."""

    def __init__(self, grid: Grid, settings: Mapping[str, Any]) -> None:
        super().__init__(grid)
        self._settings = json.dumps(dict(settings))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        for message in sent:
            message.content[SETTINGS] = ConfigRecord({"json": self._settings})
        return self.inner.push_messages(sent)


class PlainGrid(Around):
    """Between the distill system and somebody else's ClientApp, which trains as Flower's own
    strategies ask it to: a state dict and a configuration in, a state dict and `num-examples` out.

    Every node is one participant. What the system asks beyond training is answered here. A reply
    has one ArrayRecord and one MetricRecord under any names; its loss is `train_loss`, `train-loss`
    or `loss`, or 0 where it tells none. What cannot be the model's parameters is the job's error.
    """

    def __init__(self, grid: Grid, model: FlatModel, order: Mapping[str, Any]) -> None:
        super().__init__(grid)
        self._model, self._order = model, dict(order)
        self._answers: dict[str, Message] = {}  # to what is answered here
        self._trained: dict[str, tuple[Message, float]] = {}  # messages under way, and since when
        self._numbers = count(1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = list(message_ids)
        here = [self._answers.pop(each) for each in wanted if each in self._answers]
        there = [each for each in wanted if each in self._trained]
        replies = self.inner.pull_messages(there) if there else ()
        return here + [self._translated(reply) for reply in replies]

    def _push(self, message: Message) -> str:
        if message.metadata.message_type == "train.local":
            plain = self._plain(message)
            ids = list(self.inner.push_messages([plain]))
            if not ids or not ids[0]:
                return ""
            message_id, self._trained[ids[0]] = ids[0], (message, time.monotonic())
        else:
            message_id = f"plain-{next(self._numbers)}"
        message.metadata.__dict__["_message_id"] = message_id  # which a reply names
        if message_id not in self._trained:
            self._answers[message_id] = self._answer(message)
        return message_id

    def _answer(self, message: Message) -> Message:
        if message.metadata.message_type == "query.hello":
            answer = {
                "partition-id": -1,
                "name": f"{message.metadata.dst_node_id}",
                "own-data": True,
                "fingerprint": fingerprint(),
                "code": "",
            }
        else:  # "query.prepare": how many examples each has comes with its first update
            order: Any = message.content["config"]
            answer = {"fault": "", "examples": [0] * len(order["participants"])}
        return Message(RecordDict({"config": ConfigRecord(answer)}), reply_to=message)

    def _plain(self, message: Message) -> Message:
        """A job as Flower's strategies send it."""
        arrays: Any = message.content["arrays"]
        self._model.load(arrays["weights"].numpy(), arrays["buffers"].numpy())
        order = {**self._order, "server-round": int(message.metadata.group_id)}
        content = RecordDict({"arrays": state_record(self._model), "config": ConfigRecord(order)})
        group = message.metadata.group_id
        return Message(content, message.metadata.dst_node_id, "train", group_id=group)

    def _translated(self, reply: Message) -> Message:
        """A plain reply as the system's own."""
        message, since = self._trained.pop(reply.metadata.reply_to_message_id)
        if reply.has_error():
            return Message(reply.error, reply_to=message)
        order: Any = message.content["config"]
        [job] = [
            f"{participant}.{index}"
            for participant, index in zip(order["participants"], order["indices"], strict=True)
        ]
        arrays: dict[str, Array] = {}
        metrics: dict[str, Any] = {}
        errors: dict[str, Any] = {}
        try:
            [given] = reply.content.array_records.values()
            [told] = reply.content.metric_records.values()
            load_state(self._model, given)
            arrays = {f"{k}.{job}": Array(v) for k, v in self._model.state().items()}
            loss = next((told[k] for k in _LOSSES if k in told), 0.0)
            metrics[f"examples.{job}"] = int(told["num-examples"])  # type: ignore[arg-type]
            metrics[f"loss.{job}"] = float(loss)  # type: ignore[arg-type]
            metrics[f"seconds.{job}"] = time.monotonic() - since
        except Exception as error:  # whatever somebody's ClientApp sends
            errors[f"error.{job}"] = (
                f"no plain train reply (one ArrayRecord with the model's state dict, one "
                f"MetricRecord with num-examples): {' '.join(str(error).split()) or repr(error)}"
            )
        content = {
            "arrays": ArrayRecord(arrays),
            "metrics": MetricRecord(metrics),
            "config": ConfigRecord(errors),
        }
        return Message(RecordDict(content), reply_to=message)


def state_record(model: FlatModel) -> ArrayRecord:
    """The state dict of a model as Flower sends it."""
    return ArrayRecord({name: value.cpu() for name, value in model.module.state_dict().items()})


def load_state(model: FlatModel, record: ArrayRecord) -> None:
    """Put a state dict into a model. Raises RuntimeError or ValueError if it is another one's."""
    model.module.load_state_dict(record.to_torch_state_dict())
