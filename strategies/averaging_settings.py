"""What an averaging rule is told, and what differential privacy is."""

from dataclasses import dataclass
from typing import Annotated

from strategies.ranges import OneOf, Within


@dataclass(frozen=True)
class PrivacySettings:
    """Differential privacy of whole participants, and of single images; see docs/privacy.md."""

    clients: Annotated[str, OneOf("adaptive", "fixed", "off")]
    noise_multiplier: Annotated[float, Within(0, above=True)]
    clipping_norm: Annotated[float, Within(0, above=True)]
    clipping_quantile: Annotated[float, Within(0, 1)]
    samples: bool
    sample_noise_multiplier: Annotated[float, Within(0, above=True)]
    sample_clipping_norm: Annotated[float, Within(0, above=True)]
    delta: Annotated[float, Within(0, 0.1, above=True)]

    @property
    def of_clients(self) -> bool:
        return self.clients != "off"

    @property
    def on(self) -> bool:
        return self.of_clients or self.samples


@dataclass(frozen=True)
class AveragingSettings:
    """averaging: the rule's name, "buffered", one of synchronous rounds, or somebody's own.
    buffered: whether it gets updates as they come. cohort: how many participants take part in a
    synchronous round. seed: of the noise of differential privacy; None: it is secret."""

    averaging: str
    buffered: bool
    cohort: int
    seed: int | None
    buffer_size: int
    staleness_weight: str
    staleness_exponent: float
    staleness_bound: float
    mixing: float
    server_learning_rate: float
    server_tau: float
    trim_fraction: float
    num_malicious_nodes: int
    proximal_mu: float
    privacy: PrivacySettings
