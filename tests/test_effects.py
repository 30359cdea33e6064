"""When keys have an effect: the table has all keys, it is true, and who gives a key for nothing is
told which one would have an effect."""

import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from client_apps.training import train_locally
from experiments.benchmarks import consensus_overhead, deployment, distill_overhead
from experiments.consensus import plan as consensus_plan
from experiments.distillation import plan as distillation_plan
from experiments.planned_runs import values_of
from fl_app import server_app
from fl_app.cli import main
from fl_app.config import FLOWER_RULES, RunConfig, configure, defaults, resolve, with_effect
from fl_app.data import Preparation
from fl_app.deploy import demo
from fl_app.effects import (
    EFFECTS,
    PLACE,
    SECTIONS,
    Value,
    conditions_of,
    described,
    has_effect,
)
from fl_app.launch import run as launch
from fl_app.launch.values import parse_assignments
from fl_app.problem import problem_of
from fl_app.settings import averaging_of, distillation_run_of, nodes_run_of, training_of
from strategies.attacks import FORGERIES
from strategies.consensus.algorithms import ALGORITHMS
from strategies.consensus.shared import nodes_of
from strategies.distillation.learner import Learner
from strategies.distillation.proxy import ProxyData
from strategies.distillation.settings import VARIANTS
from strategies.errors import ConfigError
from strategies.learning_rate import rate_of
from strategies.partition import make_split
from strategies.problem import flat_model, task_of
from strategies.rules import Update, make_rule
from strategies.schedule import Job
from strategies.task import Examples

ROOT = Path(__file__).resolve().parents[1]

# ---------------------------------------------------------------------------- what a run is made of

SMALL: dict[str, Value] = {
    "small-width": 2,
    "large-width": 4,
    "local-steps": 2,
    "batch-size": 8,
    "num-server-rounds": 4,
    "proxy-examples": 20,
    "validation-examples": 20,
    "distill.batch-size": 8,
    "distill.reverse-steps": 3,
    "distill.forward-steps": 2,
    "consensus.steps": 24,
    "consensus.window": 12,
}
CONTEXTS: list[dict[str, Value]] = [
    *({"distill.variant": variant} for variant in VARIANTS),
    {"distill.variant": "async-round", "proxy-labelled-examples": 3, "distill.lift": "on"},
    {"distill.variant": "sync-forward", "proxy-labelled-examples": 20},
    {"distill.variant": "sync-forward", "clock": "real"},
    {"evaluate-on": "validation"},
    {"mode": "consensus", "evaluate-on": "validation"},
    *({"mode": "average", "averaging": name, "participants": 7} for name in FLOWER_RULES),
    {"mode": "average", "averaging": "buffered"},
    {"mode": "average", "averaging": "buffered", "buffer-size": 1, "staleness-weight": "hinge"},
    {"mode": "average", "averaging": "buffered", "staleness-weight": "constant"},
    {"averaging": "buffered", "cost.straggler-probability": 0.5, "cost.dropout-probability": 0.3},
    {"mode": "average", "fraction-train": 0.5, "attack": "noise", "attackers": 1},
    {"mode": "average", "clock": "real", "attack": "label-flip", "attackers": 1},
    {"mode": "average", "partition": "shards", "normalisation": "group", "privacy.samples": True},
    {"mode": "average", "partition": "dirichlet", "privacy.clients": "fixed"},
    {"partition": "classes-per-participant", "privacy.clients": "adaptive"},
    *({"mode": "consensus", "consensus.algorithm": name} for name in ALGORITHMS),
    {"mode": "consensus", "consensus.hold": False, "consensus.topology": "watts-strogatz"},
    {"mode": "consensus", "consensus.penalty": "fixed", "consensus.topology": "erdos-renyi"},
    {"mode": "consensus", "consensus.outages": "pause:1@0.2-0.5", "consensus.clip": 1.0},
    {"mode": "consensus", "consensus.exchange": "synchronous", "consensus.topology": "base-k"},
    {"mode": "consensus", "clock": "real", "consensus.loss": 0.1, "partition": "iid"},
]  # fmt: skip
for context in CONTEXTS:
    if context.get("consensus.algorithm") == "relay-sgd":
        context["consensus.topology"] = "tree"
    if context.get("consensus.topology") == "watts-strogatz":
        context["consensus.degree"] = 4

# Another value of each key: one that is as good as the one that it has.
OTHER: dict[str, Value] = {
    "data-root": "/other",
    "data-path": "/other.npz",
    "table": "diabetes",
    "table-target": "other",
    "table-kind": "classes",
    "replay": "/other",
    "device-profiles": "/other",
    "availability": "/other",
    "devices": "a,b,c",
    "small-model": "lenet",
    "large-model": "resnet20",
    "normalisation": "group",
    "learning-rate-schedule": "cosine",
    "proxy-labelled-examples": 5,
    "precision": "bf16",
    "mail-precision": "int8",
    "best-metric": "loss",
    "evaluate-on": "validation",
    "averaging": "fedmedian",
    "staleness-weight": "hinge",
    "distill.variant": "async-round",
    "distill.references": "small-average",
    "consensus.algorithm": "gossip",
    "consensus.topology": "complete",
    "consensus.topology-file": "/other.txt",
    "consensus.degree": 2,
    "consensus.interval": 4.0,
    "consensus.precision": "tf32",
    "consensus.exchange": "synchronous",
    "consensus.steps": 36,
    "consensus.window": 6,
    "consensus.schedule": "constant",
    "consensus.momentum-form": "heavy-ball",
    "consensus.penalty": "fixed",
    "consensus.compression": "top-k",
    "consensus.weights": "equal",
    "consensus.references": "",
    "consensus.carrier": "grid",
    "consensus.engine": "sequential",
    "consensus.outages": "pause:0@0.2-0.9",
    "privacy.clients": "fixed",
    "cost.straggler-factor": 9.0,
}
# Nothing but their refusal would come of these where the table says that they have no effect.
REFUSED = {
    "consensus.clip", "consensus.encrypt", "consensus.rho", "mail-precision", "min-participants",
    "privacy.clients", "privacy.samples",
}  # fmt: skip
# Effects outside of what is looked at here: files, devices, processes, gradients, records ...
# Whoever adds a key has it here, or in `footprint`, and another value of a text in OTHER.
ELSEWHERE = {
    "dataset", "data-root", "data-path", "allow-missing-classes", "table", "table-target",
    "table-kind", "devices", "min-participants",
    "sessions", "link-patience", "mail-precision", "round-seconds", "secure-aggregation",
    "best-metric", "stop-patience", "replay",
    "device-profiles", "availability",
    "distill.teacher-average", "distill.publish-ema", "distill.threads", "distill.gpu-fraction",
    "distill.restarts", "distill.references", "consensus.topology-file", "consensus.batch-size",
    "consensus.augment", "adjust-logits",
    "consensus.weights", "consensus.silence-seconds", "consensus.references",
    "consensus.carrier", "consensus.diagnosis", "consensus.encrypt", "consensus.engine",
    "consensus.precision", "privacy.delta",
}  # fmt: skip


def other(key: str, value: Value) -> Value:
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or 0.25
    return "off" if value in ("on", "auto") else "on"


def vectors(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.random(5, np.float32) for name in ("weights", "buffers")}


def of_averaging(c: RunConfig) -> Iterator[Any]:
    if c.virtual:
        yield c.trace()
    elif c.distils:
        yield c.plan
    yield c.cohort if not c.buffered else c.buffer_size
    yield c.num_server_rounds
    rule, bases = make_rule(averaging_of(c)), {version: vectors(version) for version in range(8)}
    count = 1 if c.buffered and c.buffer_size == 1 else 7
    jobs = [Job(p, 0, [7, 1][p % 2], 0.0, 0.0, 0.0, 0.0) for p in range(count)]
    updates = [Update(job, 3 + job.participant, 0.5, vectors(20 + job.participant)) for job in jobs]
    if count == 1:
        updates = [Update(Job(0, 0, 1, 0.0, 0.0, 0.0, 0.0), 3, 0.5, vectors(20))]
    yield from rule.combine(8, bases[7], updates, bases).values()
    yield from rule.combine(9, bases[7], updates, bases).values()
    model, generator = flat_model(problem_of(c), "small"), np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 256, (20, 1, 28, 28), dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, 10, 20))
    if not (c.privacy.samples and c.normalisation == "batch"):  # which is refused
        yield train_locally(
            model,
            Examples(images, labels),
            training_of(c),
            generator,
            learning_rate=distillation_run_of(c).learning_rate_of(3),
            prepare=Preparation((0.3,), (0.4,), augmented=True),
            loss=functional.cross_entropy,
        )
        yield from model.state().values()
    if c.distils:
        yield from of_distillation(c)


def of_distillation(c: RunConfig) -> Iterator[Any]:
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)

    labels = torch.arange(20) % 10
    known = c.proxy_labelled_examples
    known = len(labels) if known == -1 else known
    prepare = Preparation((0.3,), (0.4,), augmented=True)
    proxy = ProxyData(images(20), labels[:known] if known else None, prepare)
    large, small = flat_model(problem_of(c), "large"), flat_model(problem_of(c), "small")
    state = small.state()
    learner = Learner(distillation_run_of(c), task_of(problem_of(c)), large, small, proxy)
    learner.set_teacher(1, state["weights"], state["buffers"])
    learner.reverse_step()
    learner.set_teacher(2, state["weights"], state["buffers"])
    for _ in range(c.distill.reverse_steps):
        learner.reverse_step()
    yield from learner.state()[0].values()
    if c.variant.forward:
        yield from learner.forward_distil(1, state["weights"], state["buffers"]).values()


def of_consensus(c: RunConfig) -> Iterator[Any]:
    topology, algorithm, timetable = nodes_of(nodes_run_of(c), "")
    yield topology.rounds
    yield algorithm
    yield c.consensus.settling_rounds
    yield [
        rate_of(c.consensus.schedule, c.consensus.step_size, window, c.rounds)
        for window in range(1, c.rounds + 1)
    ]
    if c.virtual:
        yield [timetable.timeline(i, w) for i in range(c.participants) for w in (1, 2)]
        return
    link = timetable.conditions
    mail = (link.loss, link.duplication, link.delay_seconds)
    yield timetable.interval, mail if timetable.interval < np.inf else ()


def footprint(changes: Mapping[str, Value]) -> list[bytes | str]:
    """What a run computes with, as far as it can be had without running it."""
    return _footprint(resolve({**SMALL, **changes}))


@cache
def _footprint(c: RunConfig) -> list[bytes | str]:
    torch.set_num_threads(1)
    held = c.evaluate_on == "validation"
    split = make_split(
        np.arange(400) % 10,
        num_partitions=c.participants,
        scheme=c.partition,
        seed=c.seed,
        proxy_size=0 if c.agrees else c.proxy_examples,
        validation_size=c.validation_examples if not c.agrees or held else 0,
        labelled_size=c.proxy_labelled_examples if c.distils else 0,
        **dict(problem_of(c).parameters),
    )
    found: list[Any] = [*split.participants, split.proxy, split.validation]
    found.append(c.evaluate_examples if c.evaluate_on == "test" else c.evaluate_on)
    if (attack := training_of(c).attack_of(c.participants - 1)) in FORGERIES:
        found.append(FORGERIES[attack](np.ones(3), c.attack_scale, np.random.default_rng(0)))
    found += of_consensus(c) if c.agrees else of_averaging(c)
    return [item.tobytes() if isinstance(item, np.ndarray) else repr(item) for item in found]


def values_in(context: Mapping[str, Value]) -> dict[str, Value]:
    return resolve({**SMALL, **context}).settled() | {PLACE: ""}


def changed(context: Mapping[str, Value], *keys: str) -> dict[str, Value]:
    values = values_in(context)
    return {**context, **{key: other(key, values[key]) for key in keys}}


CONDITIONAL = [key for key in EFFECTS if conditions_of(key)]


# ---------------------------------------------------------------------------------------- the table


def test_the_table_has_every_key_and_no_other() -> None:
    assert EFFECTS.keys() == defaults().keys()
    assert {key.partition(".")[0] for key in EFFECTS if "." in key} == SECTIONS.keys()


def test_conditions_look_at_keys_that_there_are() -> None:
    looked_at = {
        key for name in EFFECTS for condition in conditions_of(name) for key in condition.keys
    }
    assert looked_at <= {*defaults(), PLACE}


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_what_has_no_effect_changes_nothing(context: dict[str, Value]) -> None:
    values = values_in(context)
    unused = [key for key in CONDITIONAL if not has_effect(key, values) and key not in REFUSED]
    assert footprint(changed(context, *unused)) == footprint(context)


@pytest.mark.parametrize("key", sorted(set(CONDITIONAL) - ELSEWHERE))
def test_what_has_an_effect_changes_something(key: str) -> None:
    """In every context that needs what the key needs, up to a first one in which it shows."""
    contexts = [context for context in CONTEXTS if has_effect(key, values_in(context))]
    assert any(footprint(changed(context, key)) != footprint(context) for context in contexts)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_an_algorithm_uses_is_what_the_table_says(algorithm: str) -> None:
    """Key by key, and not only in one context: there are too many baselines to be right by luck."""
    context: dict[str, Value] = {"mode": "consensus", "consensus.algorithm": algorithm}
    if algorithm == "relay-sgd":
        context["consensus.topology"] = "tree"
    settings = [f"consensus.{name}" for name in (
        "forget", "theta", "kappa", "mult", "alpha", "momentum", "weight-decay", "keep",
        "compression", "gamma",
    )]  # fmt: skip
    before = nodes_of(nodes_run_of(resolve({**SMALL, **context})), "")[1]
    for key in settings:
        other_values = changed(context, key)
        after = nodes_of(nodes_run_of(resolve({**SMALL, **other_values})), "")[1]
        assert (after != before) == has_effect(key, values_in(other_values)), key


# ------------------------------------------------------------------------------------- the refusal


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "consensus.topology=torus",
            "consensus.topology=torus has no effect with mode=distill: use mode=consensus",
        ),
        (
            "consensus.topology=torus consensus.steps=840",
            "consensus.topology=torus, consensus.steps=840 have no effect with mode=distill: use "
            "mode=consensus",
        ),
        (
            "mode=consensus learning-rate=9 averaging=krum batch-size=7",
            "learning-rate=9 has no effect with mode=consensus: use consensus.learning-rate, or "
            "mode=distill or average; averaging=krum has no effect with mode=consensus: use "
            "consensus.algorithm, or mode=distill or average; batch-size=7 has no effect with "
            "mode=consensus: use consensus.batch-size, or mode=distill or average",
        ),
        (
            "mode=consensus consensus.algorithm=pdmm-sgd consensus.theta=0.3",
            "consensus.theta=0.3 has no effect with consensus.algorithm=pdmm-sgd, which stands for "
            "1: use consensus.algorithm=ecl or c-ecl",
        ),
        (
            "mode=consensus consensus.algorithm=gossip consensus.theta=1",
            "consensus.theta=1 has no effect with consensus.algorithm=gossip: use "
            "consensus.algorithm=ecl or c-ecl",
        ),
        (
            "mode=consensus consensus.algorithm=gossip consensus.keep=0.5",
            "consensus.keep=0.5 has no effect with consensus.algorithm=gossip: use "
            "consensus.algorithm=c-ecl or choco-sgd",
        ),
        (
            "mode=consensus consensus.rho=0.1",
            "consensus.rho=0.1 has no effect with consensus.algorithm=ecl, consensus.hold=true: "
            "use consensus.algorithm=ecl with consensus.hold=false, or "
            "consensus.algorithm=pdmm-sgd or admm-sgd",
        ),
        (
            "mode=consensus num-server-rounds=5",
            "num-server-rounds=5 has no effect with mode=consensus: use consensus.steps, or "
            "mode=distill or average",
        ),
        (
            "averaging=buffered fraction-train=0.5",
            "fraction-train=0.5 has no effect with averaging=buffered: use averaging other than "
            "buffered",
        ),
        (
            "averaging=krum trim-fraction=0.3",
            "trim-fraction=0.3 has no effect with averaging=krum: use averaging=fedtrimmedavg",
        ),
        (
            "averaging=buffered mixing=0.5",
            "mixing=0.5 has no effect with buffer-size=3: use buffer-size=1",
        ),
        ("data-path=/own.npz", "data-path=/own.npz has no effect with dataset=embedded, "
         "task=images: use dataset=files, or task other than images"),
        ("alpha=0.1", "alpha=0.1 has no effect with partition=iid: use partition=dirichlet"),
        (
            "distill.variant=sync distill.forward-steps=3",
            "distill.forward-steps=3 has no effect with distill.variant=sync: use "
            "distill.variant=sync-forward",
        ),
        (
            "clock=real cost.client-seconds=3",
            "cost.client-seconds=3 has no effect with clock=real: use clock=virtual",
        ),
        ("sessions=off", "sessions=off has no effect in a simulation: use devices (--superlink)"),
        (
            "mode=consensus learning-rate=0.05",
            "learning-rate=0.05 has no effect with mode=consensus: use consensus.learning-rate, "
            "or mode=distill or average",
        ),
    ],
)  # fmt: skip
def test_who_gives_a_key_for_nothing_is_told_the_right_one(
    words: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "preflight", lambda config: pytest.fail("went on"))
    assert main(["run", *words.split()]) == 2
    assert capsys.readouterr().err == f"edge-fl: {message}\n"


def test_on_devices_their_keys_have_an_effect() -> None:
    given = {"sessions": "off", "min-participants": 2, "clock": "real"}
    assert configure(given).sessions == "off"
    with pytest.raises(ConfigError, match="have no effect in a simulation"):
        configure(given, place="simulation")


def test_what_an_algorithm_stands_for_may_be_said() -> None:
    own = {"consensus.theta": 1.0, "consensus.hold": False, "consensus.penalty": "fixed"}
    configure({"mode": "consensus", "consensus.algorithm": "pdmm-sgd", **own})
    plain = {"consensus.algorithm": "gradient-tracking", "consensus.momentum": 0.0}
    configure({"mode": "consensus", **plain})


def test_of_a_whole_configuration_what_departs_from_the_defaults_is_given() -> None:
    """So it comes from Flower."""
    assert configure({**defaults(), "mode": "consensus"}).agrees
    with pytest.raises(ConfigError, match=r"^consensus\.topology=torus has no effect"):
        configure({**defaults(), "consensus.topology": "torus"})


def test_what_flwr_run_brings_is_looked_at_before_the_run_begins() -> None:
    context = SimpleNamespace(run_config={**defaults(), "consensus.topology": "torus"})
    with pytest.raises(ConfigError, match=r"^consensus\.topology=torus has no effect"):
        server_app.main(None, context)  # type: ignore[arg-type]


def test_a_run_that_is_continued_has_the_configuration_that_it_began_with() -> None:
    """It was looked at then, and is compared with what the run has recorded."""
    recorded = resolve({"mode": "average", "distill.temperature": 3.0}).flat()
    assert configure({**recorded, "resume": "/runs/one"}).resume


def test_every_key_is_described_with_what_it_needs() -> None:
    lines = described((ROOT / "pyproject.toml").read_text())
    text = "\n".join(lines)
    assert "config.consensus:" in text
    [trim] = [line for line in lines if line.startswith("trim-fraction")]
    assert trim.endswith(" [mode=distill or average; averaging=fedtrimmedavg]")
    [section] = [line for line in lines if line.startswith("config.cost")]
    assert section.endswith(" [mode=distill or average; clock=virtual]")
    bracketed = [line for line in lines if line.endswith("]") and not line.startswith("config.")]
    assert len(bracketed) == sum(bool(conditions) for conditions in EFFECTS.values())


# ----------------------------------------------------------------------- what this repository gives


def commands() -> Iterator[str]:
    """Every `edge-fl run` of the documentation, in one line."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text().replace("\\\n", " ")
        yield from re.findall(r"^ *edge-fl run ([^#\n]*=[^#\n]*)", text, re.MULTILINE)


def test_every_command_of_the_documentation_would_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "extend.md").read_text()
    [code] = re.findall(r"^```python\n# mine.py\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    Path("mine.py").write_text(code)  # what is somebody's own is read
    found = list(commands())
    assert len(found) > 8
    for command in found:
        words = [word for word in shlex.split(command) if "=" in word]
        place = "devices" if "--superlink" in command else "simulation"
        configure(parse_assignments(words), place=place)


@pytest.mark.parametrize(
    "given",
    [
        demo.CONSENSUS,
        demo.DISTILL,
        consensus_overhead.SETTINGS | {"consensus.steps": 180},
        consensus_overhead.SETTINGS | consensus_overhead.TINY | {"consensus.steps": 600},
        deployment.ROUNDS,
        deployment.WINDOWS,
        deployment.REJOIN,
        distill_overhead.SETTINGS | distill_overhead.NULL_ROUND,
    ],
)
def test_benchmarks_and_the_demonstration_give_nothing_for_nothing(given: dict[str, Value]) -> None:
    configure(given)


@pytest.mark.parametrize("module", [consensus_plan, distillation_plan])
def test_of_an_experiments_table_of_settings_a_run_is_given_what_it_uses(module: Any) -> None:
    for planned in module.plan(next(iter(module.SIZES)), (0,)):
        given = values_of(planned, Path("/runs"))
        assert configure(given, place="simulation")
        used = with_effect(planned.values)
        assert used.items() <= given.items()
        assert resolve(used).rounds == resolve(planned.values).rounds
