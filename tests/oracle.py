"""Every algorithm once more, as literally as its source states it: slow, short and easy to read.

The tests hold the application's implementations to these.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

# ------------------------------------------------------------------------------- averaging


def federated_average(vectors: Sequence[np.ndarray], sizes: Sequence[float]) -> np.ndarray:
    """McMahan et al. 2017, algorithm 1: w = sum_k n_k / n w_k, in double precision."""
    n = sum(sizes)
    total = np.zeros(vectors[0].shape)
    for vector, n_k in zip(vectors, sizes, strict=True):
        total = total + n_k / n * vector.astype(np.float64)
    return total


def fedasync(x: np.ndarray, x_new: np.ndarray, alpha: float, s: float) -> np.ndarray:
    """Xie et al. 2019, algorithm 1: x = (1 - alpha_t) x + alpha_t x_new, alpha_t = alpha s."""
    alpha_t = alpha * s
    return (1 - alpha_t) * x.astype(np.float64) + alpha_t * x_new


def fedbuff(
    x: np.ndarray,
    results: Sequence[np.ndarray],
    bases: Sequence[np.ndarray],
    s: Sequence[float],
    eta_g: float,
) -> np.ndarray:
    """Nguyen et al. 2022, algorithm 1, with the staleness scaling of its section 3.1.

    Its clients return Delta_i = base_i - result_i and its server descends: x - eta_g / K sum
    s_i Delta_i.
    """
    delta = np.zeros(x.shape)
    for result, base, s_i in zip(results, bases, s, strict=True):
        delta = delta + s_i * (base.astype(np.float64) - result)
    return x - eta_g * delta / len(results)


@dataclass
class Adaptive:
    """Reddi et al. 2021, algorithm 2 (FedAdam and FedYogi), for one vector.

    Flower multiplies FedAdam's rate by Adam's bias correction, with the exponent round + 1 where
    Kingma & Ba 2015 have t: `bias_correction` does so too.
    """

    eta: float
    tau: float
    yogi: bool
    beta_1: float = 0.9
    beta_2: float = 0.99
    m: np.ndarray | float = 0.0
    v: np.ndarray | float = 0.0

    def step(self, round_: int, x: np.ndarray, average: np.ndarray) -> np.ndarray:
        delta = average - x.astype(np.float64)
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * delta
        if self.yogi:
            self.v = self.v - (1 - self.beta_2) * delta**2 * np.sign(self.v - delta**2)
            eta = self.eta
        else:
            self.v = self.beta_2 * self.v + (1 - self.beta_2) * delta**2
            t = round_ + 1
            eta = self.eta * math.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
        return x + eta * self.m / (np.sqrt(self.v) + self.tau)


def krum(vectors: Sequence[np.ndarray], byzantine: int) -> np.ndarray:
    """Blanchard et al. 2017: the vector with the least sum of squared distances to its n - f - 2
    nearest others."""
    scores = []
    for i, x in enumerate(vectors):
        others = [y for j, y in enumerate(vectors) if j != i]
        distances = sorted(float(((x - y) ** 2).sum()) for y in others)
        scores.append(sum(distances[: len(vectors) - byzantine - 2]))
    return vectors[scores.index(min(scores))]


def trimmed_mean(vectors: Sequence[np.ndarray], beta: float) -> np.ndarray:
    """Yin et al. 2018: per coordinate the mean without the floor(beta n) largest and smallest."""
    cut = int(beta * len(vectors))
    columns = [sorted(column)[cut : len(vectors) - cut] for column in zip(*vectors, strict=True)]
    return np.array([sum(column) / len(column) for column in columns])


# -------------------------------------------------------------------------------- learning


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    labels: torch.Tensor | None = None,
    label_weight: float = 1.0,
) -> torch.Tensor:
    """Hinton et al. 2015: T^2 sum_c p_c log(p_c / q_c), batch mean, and beside it the mean of
    -log q_y(T = 1) over the first images, those with labels."""

    def softmax(logits: torch.Tensor) -> torch.Tensor:
        exponentials = torch.exp(logits)
        return exponentials / exponentials.sum()

    losses = []
    for g, t in zip(student, teacher, strict=True):
        p, q = softmax(t / temperature), softmax(g / temperature)
        losses.append(temperature**2 * (p * torch.log(p / q)).sum())
    loss = torch.stack(losses).mean()
    if labels is None:
        return loss
    surprises = [-torch.log(softmax(student[i])[y]) for i, y in enumerate(labels)]
    return loss + label_weight * torch.stack(surprises).mean()


def sgd(
    w: torch.Tensor,
    gradients: Iterable[Callable[[torch.Tensor], torch.Tensor]],
    *,
    rate: float,
    momentum: float,
    decay: float,
    mu: float = 0.0,
) -> torch.Tensor:
    """Minibatch SGD with heavy-ball momentum and L2 decay; one function w -> gradient per batch.

    mu: the proximal term mu / 2 |w - w_0|^2 of FedProx (Li et al. 2020).
    """
    start, velocity = w.clone(), torch.zeros_like(w)
    for gradient in gradients:
        g = gradient(w) + mu * (w - start) + decay * w
        velocity = momentum * velocity + g
        w = w - rate * velocity
    return w


def adamw(
    w: torch.Tensor,
    gradients: Iterable[Callable[[torch.Tensor], torch.Tensor]],
    *,
    rate: float,
    decay: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
) -> torch.Tensor:
    """Loshchilov & Hutter 2019, algorithm 2, in the caller's precision."""
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, gradient in enumerate(gradients, 1):
        g = gradient(w)
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        m_hat, v_hat = m / (1 - beta_1**t), v / (1 - beta_2**t)
        w = w - rate * decay * w - rate * m_hat / (torch.sqrt(v_hat) + epsilon)
    return w


# -------------------------------------------------------------------------------- schedule


@dataclass
class Timeline:
    """What happened, in ticks. `versions`: (tick, jobs, lost jobs), a job being (participant,
    index, base version); `minibatches`: (kind, teacher's version, tick of its end); `shown`: how
    many reverse steps the global model shown for each version had done; `end`: last tick."""

    versions: list[tuple[int, set, set]] = field(default_factory=list)
    minibatches: list[tuple[str, int, int]] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    end: int = 0


def timeline(
    policy: str,
    *,
    rounds: int,
    participants: int,
    job_ticks: Callable[[int, int], tuple[int, bool]],
    cohort: Callable[[int], Sequence[int]],
    buffer_size: int,
    reverse: tuple[int, int],
    forward: tuple[int, int],
) -> Timeline:
    """Clients, averaging and distillation server, tick by tick.

    job_ticks: (participant, index) -> duration, whether it is lost. cohort: round -> who takes
    part, without a buffer. reverse, forward: (minibatches of a block, ticks of one minibatch).
    """
    log = Timeline()
    under_way: dict[int, tuple[int, int, int, bool]] = {}  # participant -> end, index, base, lost
    next_index = [0] * participants
    jobs: set = set()
    lost: set = set()
    done = 0  # reverse steps
    server = _server(policy, rounds, reverse, forward, lambda: len(log.versions))
    minibatch: tuple[str, int] | None = None
    busy_until = -1
    let_clients_go = not buffer_size

    def start(participant: int, now: int) -> None:
        ticks, is_lost = job_ticks(participant, next_index[participant])
        job = (now + ticks, next_index[participant], len(log.versions), is_lost)
        under_way[participant] = job
        next_index[participant] += 1

    now = 0
    while True:
        if minibatch and busy_until == now:
            log.minibatches.append((*minibatch, now))
            done += minibatch[0] == "reverse"
            minibatch = None
            if policy == "sync" and done == reverse[0] * (len(log.shown) + 1):
                log.shown.append(done)
        if now == 0 and buffer_size:
            for participant in range(participants):
                start(participant, now)
        for participant in sorted(p for p, job in under_way.items() if job[0] == now):
            _, index, base, is_lost = under_way.pop(participant)
            (lost if is_lost else jobs).add((participant, index, base))
            full = len(jobs) == buffer_size if buffer_size else not under_way
            if full and len(log.versions) < rounds:
                log.versions.append((now, jobs, lost))
                jobs, lost = set(), set()
                let_clients_go = policy != "sync" and not buffer_size
                if policy != "sync":
                    log.shown.append(done)
            if buffer_size:
                start(participant, now)
        if minibatch is None:
            order = next(server, "end")
            if order == "end":
                log.shown[-1] = done  # the run ends with the last version's own block
                log.end = now
                return log
            if isinstance(order, tuple):
                minibatch, busy_until = order[:2], now + order[2]
            let_clients_go = let_clients_go or order == "go"
        if let_clients_go and len(log.versions) < rounds and not under_way:
            let_clients_go = False
            for participant in cohort(len(log.versions) + 1):
                start(participant, now)
        now += 1


def _server(
    policy: str,
    rounds: int,
    reverse: tuple[int, int],
    forward: tuple[int, int],
    newest: Callable[[], int],
) -> Iterator[tuple[str, int, int] | str]:
    """The distillation server: asked whenever it is free, says its next minibatch (kind, teacher,
    ticks), "go" (the clients need not wait any more), or "idle"."""
    taken = 0
    while taken < rounds:
        if newest() == taken and (policy != "continuous" or not taken):
            yield "idle"
            continue
        version, is_new = newest(), newest() != taken
        taken, is_last = version, version == rounds
        teaches_back = is_new and (policy == "sync" or not is_last)
        learn = [("reverse", version, reverse[1])] * reverse[0]
        teach = [("forward", version, forward[1])] * forward[0] if teaches_back else []
        if policy == "continuous":
            yield from teach + (learn if is_last else learn[:1])
        else:
            yield from learn + teach
        if policy == "sync" and not is_last:
            yield "go"
