"""The first message to every node: who is there, and which code does it run?"""

from pathlib import Path

from flwr.app import Message

from client_apps.device import Device
from strategies.fingerprint import fingerprint
from strategies.messages.codec import records_of
from strategies.messages.queries import Hello


def hello(message: Message, device: Device) -> Message:
    """Answer with a `Hello`."""
    node = device.context.node_config
    answer = Hello(
        partition_id=int(node.get("partition-id", -1)),
        name=str(node.get("name", "")),
        fingerprint=fingerprint(),
        code=str(Path(__file__).resolve().parents[1]),
    )
    return Message(records_of(answer), reply_to=message)
