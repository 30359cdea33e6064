"""Every decentralised algorithm once more, as literally as its source states it.

All nodes at once, new vectors at every step, matrices and signed duals where the papers have them.
The tests hold the application's algorithms to these.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from strategies.consensus.algorithms import Settings
from strategies.contracts.world import Tick, World
from strategies.randomness import rng

Models = list[torch.Tensor]


@dataclass
class Momentum:
    """M <- beta M + (1 - beta) (g + lambda w) of all nodes."""

    world: World
    beta: float
    weight_decay: float
    values: dict[int, torch.Tensor] = field(default_factory=dict)

    def __call__(self, i: int, w: torch.Tensor) -> torch.Tensor:
        g = self.world.gradient(i, w.clone()) + self.weight_decay * w
        old = self.values.get(i, torch.zeros_like(w))
        self.values[i] = self.beta * old + (1 - self.beta) * g
        return self.values[i]


# ------------------------------------------------------------------------ edge-consensus learning

Alpha = Callable[[int, int, float], float]


def alpha_of(world: World, s: Settings, interval: float) -> Alpha:
    """(i, j, eta) -> alpha_ij."""
    degrees = [len(own) for own in world.topology.neighbours]

    def isvr(i: int, j: int, eta: float) -> float:
        return s.mult / (eta * (interval - 1) * max(degrees[i], degrees[j]))

    return isvr if s.penalty == "isvr" else lambda i, j, eta: s.alpha


# (sender, receiver, seq, how wrong the receiver is thought to be) -> coordinates that travel, bool
Mask = Callable[[int, int, int, torch.Tensor], torch.Tensor]


def everything(i: int, j: int, seq: int, wrong: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(wrong, dtype=torch.bool)


def ecl(world: World, s: Settings, alpha: Alpha | None = None, mask: Mask = everything) -> Models:
    """Niwa et al. 2020 with its signed duals z and y; 2021 with the ISVR penalty; Takezawa et al.
    2022 with a mask on y - z. Extensions: rho, kappa and the change of alpha, see `ECL`."""
    alpha = alpha or alpha_of(world, s, s.interval)
    near = world.topology.neighbours
    w = [start.clone() for start in world.start]
    momentum = Momentum(world, s.momentum, s.weight_decay)

    def A(i: int, j: int) -> float:  # noqa: N802 - the papers' letter
        return 1.0 if i < j else -1.0

    z = {(i, j): A(i, j) * w[i] for i in range(len(w)) for j in near[i]}
    heard = {(i, j): w[i] for i, j in z}
    thought = {(j, i): A(j, i) * w[i] for i, j in z}  # what i thinks that z_{j|i} is
    eta = world.ticks[0].rate
    for tick in world.ticks:
        for i, j in z:
            ratio = tick.rate / eta if s.penalty == "isvr" else 1.0
            z[i, j] = A(i, j) * w[i] + ratio * (z[i, j] - A(i, j) * w[i])
        eta = tick.rate
        for i in range(len(w)):
            top, bottom = w[i] - eta * momentum(i, w[i]), 1.0
            for j in near[i]:
                top = top + eta * (alpha(i, j, eta) * A(i, j) * z[i, j] + s.rho * heard[i, j])
                bottom += eta * (alpha(i, j, eta) + s.rho)
            w[i] = top / bottom
        for exchange in tick.exchanges:
            on_its_way = []
            for i, j, seq, lost in exchange:
                y = z[i, j] - 2 * A(i, j) * w[i]
                omega = mask(i, j, seq, (y - thought[j, i]).abs())
                thought[j, i] = thought[j, i] + s.theta * omega * (y - thought[j, i])
                on_its_way.append((i, j, y, w[i], omega, lost))
            for i, j, y, model, omega, lost in on_its_way:
                if lost:
                    continue
                move = s.theta * omega * (y - z[j, i])
                share = alpha(i, j, eta) / sum(alpha(j, k, eta) for k in near[j])
                z[j, i] = z[j, i] + move
                w[j] = w[j] + s.kappa * share * A(j, i) * move
                heard[j, i] = model
    return w


def held_ecl(world: World, s: Settings) -> Models:
    """Ours: anchors that move along with the model, and forget."""
    alpha = alpha_of(world, s, s.interval)
    near = world.topology.neighbours
    w = [start.clone() for start in world.start]
    momentum = Momentum(world, s.momentum, s.weight_decay)
    anchor = {(i, j): w[i] for i in range(len(w)) for j in near[i]}
    eta = world.ticks[0].rate
    for tick in world.ticks:
        for i, j in anchor:
            ratio = tick.rate / eta if s.penalty == "isvr" else 1.0
            anchor[i, j] = w[i] + ratio * (anchor[i, j] - w[i])
        eta = tick.rate
        for i, model in enumerate(w):
            correction = sum(alpha(i, j, eta) * (anchor[i, j] - model) for j in near[i])
            w[i] = model - eta * (momentum(i, model) - correction)
            for j in near[i]:
                anchor[i, j] = w[i] + (1 - s.forget * eta) * (anchor[i, j] - model)
        for exchange in tick.exchanges:
            on_its_way = [(i, j, 2 * w[i] - anchor[i, j]) for i, j, *_ in exchange]
            for (i, j, reflection), sent in zip(on_its_way, exchange, strict=True):
                if sent.lost:
                    continue
                before, surprise = w[j], reflection - anchor[j, i]
                w[j] = before + s.kappa * surprise / 2
                for k in near[j]:
                    anchor[j, k] = anchor[j, k] + w[j] - before
                anchor[j, i] = anchor[j, i] + s.theta * surprise
    return w


def in_a_row(s: Settings, parameters: int, count: int, *message: int) -> torch.Tensor:
    """The next `count` coordinates of the run's order from the message's place on, as a mask."""
    order = rng(s.seed, "order", parameters).permutation(parameters)
    place = int(rng(s.seed, "mask", *message).integers(parameters))
    mask = torch.zeros(parameters, dtype=torch.bool)
    for n in range(count):
        mask[order[(place + n) % parameters]] = True
    return mask


def c_ecl(world: World, s: Settings) -> Models:
    parameters = world.start.shape[1]
    k = max(1, round(s.keep * parameters))

    def random_k(i: int, j: int, seq: int, wrong: torch.Tensor) -> torch.Tensor:
        return in_a_row(s, parameters, k, i, j, seq)

    def top_k(i: int, j: int, seq: int, wrong: torch.Tensor) -> torch.Tensor:
        mask = in_a_row(s, parameters, (k + 3) // 4, i, j, seq)
        for c in sorted(range(parameters), key=lambda c: -float(wrong[c])):
            if mask.sum() < k:
                mask[c] = True
        return mask

    alpha = alpha_of(world, s, s.interval / s.keep)
    return ecl(world, s, alpha, random_k if s.compression == "random-k" else top_k)


# ------------------------------------------------------------------------------------- baselines


def isolated(world: World, s: Settings) -> Models:
    momentum = Momentum(world, s.momentum, s.weight_decay)
    w = [start.clone() for start in world.start]
    for tick in world.ticks:
        w = [w_i - tick.rate * momentum(i, w_i) for i, w_i in enumerate(w)]
    return w


def gossip(world: World, s: Settings) -> Models:
    """Lian et al. 2018."""
    momentum = Momentum(world, s.momentum, s.weight_decay)
    w = [start.clone() for start in world.start]
    for tick in world.ticks:
        w = [w_i - tick.rate * momentum(i, w_i) for i, w_i in enumerate(w)]
        for exchange in tick.exchanges:
            models = list(w)
            for i, j, _, lost in exchange:
                if not lost:
                    w[j] = (w[j] + models[i]) / 2
    return w


def mixing(world: World, tick: Tick) -> torch.Tensor:
    """W of the round that ends with `tick`, (N, N), without what was lost; rows sum to 1."""
    assert tick.round is not None
    size = world.topology.size
    W = torch.zeros(size, size, dtype=torch.float64)
    for i, j, _, lost in tick.exchanges[0]:
        W[j, i] = 0.0 if lost else world.topology.weight(tick.round, i, j)
    return W + torch.diag(1 - W.sum(1))


def d_psgd(world: World, s: Settings) -> Models:
    """Lian et al. 2017: w <- W (w - eta g), with local steps between the mixings."""
    momentum = Momentum(world, s.momentum, s.weight_decay)
    w = world.start
    for tick in world.ticks:
        w = torch.stack([w_i - tick.rate * momentum(i, w_i) for i, w_i in enumerate(w)])
        if tick.round is not None:
            w = mixing(world, tick) @ w
    return list(w)


def momentum_tracking(world: World, s: Settings) -> Models:
    """y_0 = u_0; w <- W (w - eta y); y <- W y + u_new - u_old for the momenta u."""
    momentum = Momentum(world, s.momentum, s.weight_decay)
    w, y, old = world.start, None, None
    for tick in world.ticks:
        u = torch.stack([momentum(i, w_i) for i, w_i in enumerate(w)])
        y = u if y is None or old is None else y + u - old
        w, old = w - tick.rate * y, u
        if tick.round is not None:
            w, y = mixing(world, tick) @ w, mixing(world, tick) @ y
    return list(w)


def momentum_tracking_cta(world: World, s: Settings) -> Models:
    """Takezawa et al. 2023 in heavy-ball's learning rate: w <- W w - lr (m - c),
    c <- W (c - m) + m; W is the unit matrix between the rounds, and w what it was after the last
    one: the steps since then are added to it."""
    x = w = world.start
    m = c = torch.zeros_like(w)
    for tick in world.ticks:
        lr = (1 - s.momentum) * tick.rate
        g = torch.stack([world.gradient(i, w_i) for i, w_i in enumerate(w)]) + s.weight_decay * w
        m = s.momentum * m + g
        w = w - lr * (m - c)
        if tick.round is not None:
            W = mixing(world, tick)
            x = w = W @ x + (w - x)
            c = W @ (c - m) + m
    return list(w)


def qg_dsgdm(world: World, s: Settings) -> Models:
    """Lin et al. 2021, algorithm 1, in heavy-ball's learning rate; with local steps, the difference
    of a round's models is that of K steps."""
    x = w = world.start
    m = torch.zeros_like(w)
    for tick in world.ticks:
        lr = (1 - s.momentum) * tick.rate
        g = torch.stack([world.gradient(i, w_i) for i, w_i in enumerate(w)]) + s.weight_decay * w
        w = w - lr * (s.momentum * m + g)
        if tick.round is not None:
            w = mixing(world, tick) @ w
            m = s.momentum * m + (1 - s.momentum) * (x - w) / (s.interval * lr)
            x = w
    return list(w)


def decentlam(world: World, s: Settings) -> Models:
    """Yuan et al. 2021, algorithm 2, in heavy-ball's learning rate."""
    x = w = world.start
    m = torch.zeros_like(w)
    for tick in world.ticks:
        lr = (1 - s.momentum) * tick.rate
        g = torch.stack([world.gradient(i, w_i) for i, w_i in enumerate(w)]) + s.weight_decay * w
        w = w - lr * g
        if tick.round is not None:
            m = s.momentum * m + (x - mixing(world, tick) @ w) / lr
            x = w = x - lr * m
    return list(w)


def choco_sgd(world: World, s: Settings) -> Models:
    """Koloskova et al. 2019; copies[i][j] is h_j as node i has it."""
    momentum = Momentum(world, s.momentum, s.weight_decay)
    w = [start.clone() for start in world.start]
    parameters, nodes = len(w[0]), range(len(w))
    k = max(1, round(s.keep * parameters))
    copies = {i: {j: torch.zeros_like(w[0]) for j in nodes} for i in nodes}
    for tick in world.ticks:
        w = [w_i - tick.rate * momentum(i, w_i) for i, w_i in enumerate(w)]
        if tick.round is None:
            continue
        [exchange] = tick.exchanges
        q = {}
        for i, seq in {i: seq for i, _, seq, _ in exchange}.items():
            difference = w[i] - copies[i][i]
            if s.compression == "random-k":
                mask = in_a_row(s, parameters, k, i, seq)
            else:
                mask = difference.abs() >= difference.abs().sort().values[-k]
            q[i] = mask * difference
            copies[i][i] = copies[i][i] + q[i]
        for i, j, _, lost in exchange:
            if not lost:
                copies[j][i] = copies[j][i] + q[i]
        for i in nodes:
            for j in world.topology.neighbours[i]:
                W_ij = world.topology.weight(tick.round, i, j)
                w[i] = w[i] + s.gamma * W_ij * (copies[i][j] - copies[i][i])
    return w


def relay_sgd(world: World, s: Settings) -> Models:
    """Vogels et al. 2021, algorithm 1; what is lost is replaced by what came before it."""
    momentum = Momentum(world, s.momentum, s.weight_decay)
    w, near, N = (
        [start.clone() for start in world.start],
        world.topology.neighbours,
        len(world.start),
    )
    m = {(i, j): torch.zeros_like(w[0]) for i in range(N) for j in near[i]}
    n = dict.fromkeys(m, 0)
    for tick in world.ticks:
        w = [w_i - tick.rate * momentum(i, w_i) for i, w_i in enumerate(w)]
        if tick.round is None:
            continue
        old_m, old_n = dict(m), dict(n)
        for i, j, _, lost in tick.exchanges[0]:
            if not lost:
                m[i, j] = w[i] + sum(old_m[k, i] for k in near[i] if k != j)
                n[i, j] = 1 + sum(old_n[k, i] for k in near[i] if k != j)
        for i in range(N):
            come = sum(n[j, i] for j in near[i])
            w[i] = (w[i] + sum(m[j, i] for j in near[i]) + (N - 1 - come) * w[i]) / N
    return w


ORACLES: dict[str, Callable[[World, Settings], Models]] = {
    "ecl": lambda world, s: (held_ecl if s.hold else ecl)(world, s),
    "c-ecl": c_ecl,
    "pdmm-sgd": lambda world, s: ecl(world, replace(s, theta=1.0, kappa=0.0, penalty="fixed")),
    "admm-sgd": lambda world, s: ecl(world, replace(s, theta=0.5, kappa=0.0, penalty="fixed")),
    "pdmm-isvr": lambda world, s: ecl(
        world, replace(s, theta=1.0, kappa=0.0, penalty="isvr", mult=1.0, rho=0.0)
    ),
    "admm-isvr": lambda world, s: ecl(
        world, replace(s, theta=0.5, kappa=0.0, penalty="isvr", mult=1.0, rho=0.0)
    ),
    "gossip": gossip,
    "d-psgd": d_psgd,
    "gradient-tracking": lambda world, s: momentum_tracking(world, replace(s, momentum=0.0)),
    "momentum-tracking": momentum_tracking,
    "momentum-tracking-cta": momentum_tracking_cta,
    "qg-dsgdm": qg_dsgdm,
    "decentlam": decentlam,
    "choco-sgd": choco_sgd,
    "relay-sgd": relay_sgd,
    "isolated": isolated,
}
