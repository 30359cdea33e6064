"""Updates as the replies that a strategy of Flower's expects."""

from collections.abc import Sequence

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from strategies.rules import Update
from tests import fake_grid  # noqa: F401 - lets Messages be made outside of a ServerApp


def replies_of(updates: Sequence[Update], keys: Sequence[str]) -> list[Message]:
    """With the vectors of these keys."""
    order = Message(RecordDict(), 1, "train")
    return [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord({key: Array(update.vectors[key]) for key in keys}),
                    "metrics": MetricRecord({"num-examples": update.examples}),
                }
            ),
            reply_to=order,
        )
        for update in updates
    ]
