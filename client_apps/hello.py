"""The first message to every node: who is there, and which code does it run?"""

from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict

from client_apps.device import Device
from strategies.fingerprint import fingerprint


def hello(message: Message, device: Device) -> Message:
    """Answer with the node's place in the simulation (partition-id, or -1 on a device), whether it
    has data of its own, and the fingerprint and place of the code it runs."""
    node = device.context.node_config
    answer = {
        "partition-id": int(node.get("partition-id", -1)),
        "name": str(node.get("name", "")),
        "own-data": bool(node.get("data-path", "")),
        "fingerprint": fingerprint(),
        "code": str(Path(__file__).resolve().parents[1]),
    }
    return Message(RecordDict({"config": ConfigRecord(answer)}), reply_to=message)
