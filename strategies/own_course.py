"""A strategy of Flower whose `start` has a course of its own."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from strategies.errors import ConfigError


def check_rounds(num_rounds: int, configured: int, setting: str) -> None:
    """Raise ConfigError unless `num_rounds`, with which a strategy is started, is 0 or what is
    configured: the schedule, its steps' sizes and the end of a run all come from that. setting:
    the one that makes them equal."""
    if num_rounds not in (0, configured):
        raise ConfigError(
            f"start(num_rounds={num_rounds}), but the run is configured for {configured}: "
            f"configure it with {setting}, or leave num_rounds out"
        )


class OwnCourse(Strategy):
    """What Flower's own `start` would ask for, and this one does not: messages of a round, and what
    becomes of their replies. Its record says what there is to say."""

    def summary(self) -> None:
        """Flower's hook for a description of the strategy."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return ()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return ()

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        return None
