"""Grids around Flower's, for apps whose run configuration has none of our keys."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from strategies.fingerprint import fingerprint
from strategies.flat import FlatModel
from strategies.messages import SETTINGS
from strategies.messages.codec import message_of, records_of
from strategies.messages.queries import Hello, Prepared, PrepareOrder
from strategies.messages.training import TrainReply, jobs_of

_LOSSES = ("train_loss", "train-loss", "loss")


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
    """Gives every message the settings of the run along; see `client_apps.mounting`."""

    def __init__(self, grid: Grid, settings: Mapping[str, Any]) -> None:
        super().__init__(grid)
        self._settings = dict(settings)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        for message in sent:
            message.content[SETTINGS] = ConfigRecord(self._settings)
        return self.inner.push_messages(sent)


class PlainGrid(Around):
    """Between the distill system and somebody else's ClientApp, which trains as Flower's own
    strategies ask it to: a state dict and a configuration in, a state dict and `num-examples` out.

    Every node is one participant; of several jobs in a message it gets one after the other. What
    the system asks beyond training is answered here. A reply has one ArrayRecord and one
    MetricRecord under any names; its loss is `train_loss`, `train-loss` or `loss`, or 0 where it
    tells none. What cannot be the model's parameters is the job's error.
    """

    def __init__(self, grid: Grid, model: FlatModel, order: Mapping[str, Any]) -> None:
        super().__init__(grid)
        self._model, self._order = model, dict(order)
        self._answers: dict[str, Message] = {}  # to what is answered here
        self._asked: dict[str, _Asked] = {}
        self._numbers = count(1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = list(message_ids)
        here = [self._answers.pop(each) for each in wanted if each in self._answers]
        there = {self._asked[each].current: each for each in wanted if each in self._asked}
        done = []
        for reply in self.inner.pull_messages(list(there)) if there else ():
            asked = self._asked[first := there[reply.metadata.reply_to_message_id]]
            asked.replies.append((reply, time.monotonic() - asked.since))
            if reply.has_error() or len(asked.replies) == len(asked.jobs) or not self._next(asked):
                done.append(self._translated(self._asked.pop(first)))
        return here + done

    def _push(self, message: Message) -> str:
        if message.metadata.message_type == "train.local":
            asked = _Asked(message)
            if not self._next(asked):
                return ""
            message_id = asked.current
            self._asked[message_id] = asked
        else:
            message_id = f"plain-{next(self._numbers)}"
        message.metadata.__dict__["_message_id"] = message_id  # which a reply names
        if message_id not in self._asked:
            self._answers[message_id] = self._answer(message)
        return message_id

    def _next(self, asked: "_Asked") -> bool:
        """Send the next job; whether it was taken."""
        ids = [*self.inner.push_messages([self._plain(asked.message)]), ""]
        asked.current, asked.since = ids[0], time.monotonic()
        return bool(ids[0])

    def _answer(self, message: Message) -> Message:
        answer: Hello | Prepared
        if message.metadata.message_type == "query.hello":
            answer = Hello(-1, f"{message.metadata.dst_node_id}", fingerprint(), "")
        else:  # "query.prepare": how many examples each has comes with its first update
            order = message_of(PrepareOrder, message.content)
            answer = Prepared("", [0] * len(order.participants))
        return Message(records_of(answer), reply_to=message)

    def _plain(self, message: Message) -> Message:
        """A job as Flower's strategies send it."""
        arrays: Any = message.content["arrays"]
        self._model.load(arrays["weights"].numpy(), arrays["buffers"].numpy())
        order = {**self._order, "server-round": int(message.metadata.group_id)}
        content = RecordDict({"arrays": state_record(self._model), "config": ConfigRecord(order)})
        group = message.metadata.group_id
        return Message(content, message.metadata.dst_node_id, "train", group_id=group)

    def _translated(self, asked: "_Asked") -> Message:
        """Plain replies as one of the system's own."""
        last, _ = asked.replies[-1]
        if last.has_error():
            return Message(last.error, reply_to=asked.message)
        told = TrainReply()
        for job, (reply, seconds) in zip(asked.jobs, asked.replies, strict=False):
            try:
                [given] = reply.content.array_records.values()
                [numbers] = reply.content.metric_records.values()
                load_state(self._model, given)
                loss: Any = next((numbers[k] for k in _LOSSES if k in numbers), 0.0)
                examples: Any = numbers["num-examples"]
                told.add(
                    job,
                    examples=int(examples),
                    loss=float(loss),
                    seconds=seconds,
                    vectors=self._model.state(),
                )
            except Exception as error:  # whatever somebody's ClientApp sends
                reason = " ".join(str(error).split()) or repr(error)
                told.errors[job] = (
                    "no plain train reply (one ArrayRecord with the model's state dict, one "
                    f"MetricRecord with num-examples): {reason}"
                )
        for job in asked.jobs[len(asked.replies) :]:
            told.errors[job] = "the SuperLink did not take its message"
        return Message(told.records(), reply_to=asked.message)


@dataclass
class _Asked:
    """A message of the system whose jobs a plain client does one after the other. current: id of
    the one under way, which began at `since`. replies: with the seconds that each took."""

    message: Message
    current: str = ""
    since: float = 0.0
    replies: list[tuple[Message, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.jobs = jobs_of(self.message.content)


def state_record(model: FlatModel) -> ArrayRecord:
    """The state dict of a model as Flower sends it."""
    return ArrayRecord({name: value.cpu() for name, value in model.module.state_dict().items()})


def load_state(model: FlatModel, record: ArrayRecord) -> None:
    """Put a state dict into a model. Raises RuntimeError or ValueError if it is another one's."""
    model.module.load_state_dict(record.to_torch_state_dict())
