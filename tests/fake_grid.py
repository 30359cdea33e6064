"""A Grid in this process: the real ClientApp, no SuperLink, no Ray."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

from flwr.app import Context, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fl_app.client_app import app as client_app

# Flower sets these in the process of a ServerApp; a Message can be made only then.
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

# (message, reply) -> reply: where a test tampers with what a node answers. None = it never answers.
Tamper = Callable[[Message, Message], Message | None]


class FakeGrid(Grid):
    """Nodes 11, 12, ... run the ClientApp with `run_config`; `node_config` by position if given."""

    def __init__(
        self,
        run_config: dict,
        nodes: int = 2,
        node_configs: list[dict] | None = None,
        tamper: Tamper | None = None,
    ) -> None:
        configs = node_configs or [
            {"partition-id": i, "num-partitions": nodes} for i in range(nodes)
        ]
        self.contexts = {
            11 + i: Context(1, 11 + i, config, RecordDict(), dict(run_config))
            for i, config in enumerate(configs)
        }
        # A ClientApp has its process for itself and keeps its model there; here they share one.
        self._process = threading.Lock()
        self.tamper = tamper
        self.sent: list[Message] = []
        self._pool = ThreadPoolExecutor(len(self.contexts))
        self._futures: dict[str, Future] = {}
        self._ids = count(1)

    def set_run(self, run) -> None:
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [
            NodeInfo(node_id=node, name=str(context.node_config.get("name", "")))
            for node, context in self.contexts.items()
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message_id = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = message_id
            self.sent.append(message)
            self._futures[message_id] = self._pool.submit(self._work, message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for message_id in message_ids:
            future = self._futures.get(message_id)
            if future is not None and future.done():
                del self._futures[message_id]
                if (reply := future.result()) is not None:
                    replies.append(reply)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None):
        raise AssertionError("polls of whole seconds: nothing here may use it")

    def _work(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        with self._process:
            try:
                reply = client_app(message, self.contexts[node])
            except Exception as error:
                reply = Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)
        return self.tamper(message, reply) if self.tamper else reply
