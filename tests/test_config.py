"""The configuration: every key, every kind of wrong value, every combination that cannot work."""

import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from fl_app.config import FLOWER_RULES, OWN_KEYS, RunConfig, defaults, resolve, resolved
from fl_app.config.schema import paths_of
from fl_app.preflight import preflight
from fl_app.problem import problem_of
from fl_app.settings import nodes_run_of
from strategies.consensus.algorithms import ALGORITHMS
from strategies.distillation.settings import VARIANTS
from strategies.distillation.trace import DistillationPlan
from strategies.errors import ConfigError
from strategies.partition import PARTITIONS

KEYS = sorted(defaults())
# Defaults that stand for "automatic", and what they become in the distill system.
AUTOMATIC = {
    "participants": 3,
    "partition": "iid",
    "normalisation": "batch",
}


def kind(key: str) -> type:
    return type(defaults()[key])


def keys_of(*kinds: type) -> list[str]:
    return [key for key in KEYS if kind(key) in kinds]


# ------------------------------------------------------------------------------------ every key


def test_every_field_has_its_key_and_default() -> None:
    def count(config: Any) -> int:
        values = [getattr(config, item.name) for item in fields(config)]
        return sum(count(value) if is_dataclass(value) else 1 for value in values)

    assert count(resolve()) == len(KEYS)


def test_flat_and_back() -> None:
    changes = {"participants": 7, "alpha": 0.1, "distill.variant": "sync", "cost.link-spread": 0.5}
    config = resolve(changes)
    flat = config.flat()
    assert {key: flat[key] for key in changes} == changes
    assert resolve(flat) == config
    assert resolve(json.loads(json.dumps(flat))) == config  # as config.json keeps it
    assert resolve().flat() == {**defaults(), **AUTOMATIC}
    assert {key: type(value) for key, value in resolve().flat().items()} == {
        key: type(value) for key, value in defaults().items()
    }


def test_a_value_arrives_where_it_belongs() -> None:
    config = resolve({"small-width": 6, "distill.batch-size": 32, "cost.client-seconds": 2.5})
    assert (config.small_width, config.distill.batch_size, config.cost.client_seconds) == (
        6,
        32,
        2.5,
    )
    assert config.batch_size == defaults()["batch-size"]


def test_defaults_are_not_changed_by_a_run() -> None:
    before = dict(defaults())
    resolve({"participants": 9})
    assert dict(defaults()) == before


def test_equal_configurations_can_name_a_cache() -> None:
    assert hash(resolve({"seed": 3})) == hash(resolve({"seed": 3}))
    assert resolve({"seed": 3}) != resolve({"seed": 4})


# ----------------------------------------------------------------------------------- wrong kinds


@pytest.mark.parametrize("key", keys_of(int))
@pytest.mark.parametrize("value", [1.5, 2.0, "3", True, None, [1]])
def test_whole_numbers(key: str, value: Any) -> None:
    with pytest.raises(
        ConfigError, match=f"^{key}={re.escape(repr(value))} must be a whole number"
    ):
        resolve({key: value})


@pytest.mark.parametrize("key", keys_of(float))
@pytest.mark.parametrize("value", ["0.5", True, None])
def test_numbers(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{key}={value!r} must be a number"):
        resolve({key: value})


@pytest.mark.parametrize("key", keys_of(float))
def test_not_a_number_and_infinity_are_no_numbers(key: str) -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ConfigError, match=f"^{key}={value} must be finite and "):
            resolve({key: value})


@pytest.mark.parametrize("key", keys_of(str))
@pytest.mark.parametrize("value", [3, True, None])
def test_texts(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{key}={value!r} must be a text"):
        resolve({key: value})


@pytest.mark.parametrize("key", keys_of(bool))
@pytest.mark.parametrize("value", ["true", 1, 0.0, None])
def test_truth_values(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{key}={value!r} must be true or false"):
        resolve({key: value})


def test_a_whole_number_will_do_as_a_number() -> None:
    """`--run-config alpha=1` is one in TOML."""
    assert resolve({"alpha": 1}).alpha == 1.0
    assert type(resolve({"alpha": 1}).alpha) is float


# ---------------------------------------------------------------------------------- wrong values

# Texts that are free; the others have a list of choices.
FREE = (
    {
        "targets",
        "output",
        "availability",
        "device-profiles",
        "task",
        "replay",
        "name",
        "resume",
        "sinks",
        "data-root",
        "data-path",
        "table-target",
        "best-metric",  # of the task: see test_best
        "partition",
        "devices",
    }
    | {f"consensus.{name}" for name in ("outages", "references", "topology-file")}
    | {"distill.references"}
)


@pytest.mark.parametrize("key", sorted(set(keys_of(str)) - FREE))
def test_a_wrong_choice_names_all_right_ones(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({key: "nonsense"})
    head, choices = str(caught.value).split("; choose one of: ")
    assert head == f"{key}='nonsense' is unknown"
    names, _, own = choices.partition(", or name your own: ")
    assert bool(own) == (key in OWN_KEYS)
    names = names.split(", ")
    assert names == sorted(names)
    assert resolve().flat()[key] in names


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("participants", -1, "participants=-1 must be at least 1"),
        ("num-server-rounds", 0, "num-server-rounds=0 must be at least 1"),
        ("fraction-train", 0.0, "fraction-train=0.0 must be above 0 and at most 1"),
        ("fraction-train", 1.1, "fraction-train=1.1 must be above 0 and at most 1"),
        ("seed", -1, "seed=-1 must be at least 0"),
        ("round-timeout", 0.0, "round-timeout=0.0 must be above 0"),
        ("alpha", 0.0, "alpha=0.0 must be above 0"),
        ("batch-size", 1, "batch-size=1 must be at least 2"),
        ("momentum", 1.5, "momentum=1.5 must be at least 0 and at most 1"),
        ("learning-rate", 0.0, "learning-rate=0.0 must be above 0"),
        ("proximal-mu", -0.1, "proximal-mu=-0.1 must be at least 0"),
        ("mixing", 0.0, "mixing=0.0 must be above 0 and at most 1"),
        ("small-width", -1, "small-width=-1 must be at least 0"),
        ("distill.reverse-steps", 0, "distill.reverse-steps=0 must be at least 1"),
        ("distill.labelled-share", 1.5, "distill.labelled-share=1.5 must be above 0 and at most 1"),
        ("distill.temperature", 0.0, "distill.temperature=0.0 must be above 0"),
        ("distill.gpu-fraction", 0.0, "distill.gpu-fraction=0.0 must be above 0 and at most 1"),
        ("distill.restarts", -1, "distill.restarts=-1 must be at least 0"),
        ("consensus.interval", 0.9, "consensus.interval=0.9 must be at least 1"),
        ("consensus.theta", 0.0, "consensus.theta=0.0 must be above 0 and at most 1"),
        ("consensus.theta", 1.1, "consensus.theta=1.1 must be above 0 and at most 1"),
        ("consensus.kappa", -0.1, "consensus.kappa=-0.1 must be at least 0 and at most 1"),
        ("consensus.keep", 0.0, "consensus.keep=0.0 must be above 0 and at most 1"),
        ("consensus.gamma", 1.5, "consensus.gamma=1.5 must be above 0 and at most 1"),
        ("consensus.mult", 0.0, "consensus.mult=0.0 must be above 0"),
        ("consensus.rho", -0.1, "consensus.rho=-0.1 must be at least 0"),
        ("consensus.momentum", 1.0, "consensus.momentum=1.0 must be at least 0 and at most 0.9999"),
        ("consensus.steps", 0, "consensus.steps=0 must be at least 1"),
        ("consensus.window", 0, "consensus.window=0 must be at least 1"),
        ("consensus.degree", 0, "consensus.degree=0 must be at least 1"),
        (
            "consensus.probability",
            1.5,
            "consensus.probability=1.5 must be at least 0 and at most 1",
        ),
        ("consensus.loss", 1.1, "consensus.loss=1.1 must be at least 0 and at most 1"),
        ("consensus.silence-seconds", 0.0, "consensus.silence-seconds=0.0 must be above 0"),
        ("consensus.step-seconds", 0.0, "consensus.step-seconds=0.0 must be at least 1e-06"),
        ("cost.client-seconds", 0.0, "cost.client-seconds=0.0 must be above 0"),
        ("cost.straggler-factor", 0.5, "cost.straggler-factor=0.5 must be at least 1"),
        ("cost.dropout-probability", 1.0, "cost.dropout-probability=1.0 must be in [0, 1)"),
        ("targets", "0.5,high", "targets='0.5,high' must be accuracies in (0, 1] with commas"),
        ("targets", "50", "targets='50' must be accuracies in (0, 1] with commas"),
        ("targets", "0.5,nan", "targets='0.5,nan' must be accuracies in (0, 1] with commas"),
        ("targets", "0.5,0.50", "targets='0.5,0.50' names one twice"),
        ("targets", "0", "targets='0' must be accuracies in (0, 1] with commas"),
        (
            "sinks",
            "tensorbord",
            "sinks='tensorbord' is unknown; choose from: mlflow, tensorboard, wandb",
        ),
        ("output", "runs", "output='runs' must be an absolute path"),
        ("resume", "./x", "resume='./x' must be an absolute path"),
        ("data-root", "data", "data-root='data' must be an absolute path"),
        ("data-path", "own.npz", "data-path='own.npz' must be an absolute path"),
        ("consensus.topology-file", "a.txt", "consensus.topology-file='a.txt' must be an absolute"),
        ("seed", 2**63, f"seed={2**63} must be at least 0 and at most {2**63 - 1}"),
        ("num-server-rounds", 10_000_000, "num-server-rounds=10000000 must be at least 1 and at "),
        ("large-width", 4096, "large-width=4096 must be at least 0 and at most 256"),
        ("cost.client-seconds", 1e308, "cost.client-seconds=1e+308 must be at most 1e+09"),
        ("cost.speed-spread", 4.0, "cost.speed-spread=4.0 must be at most 3"),
        ("local-steps", 10**12, f"local-steps={10**12} must be at least 1 and at most 1000000000"),
        ("name", "a/b", "name='a/b' must be the name of a directory"),
        ("name", "..", "name='..' must be the name of a directory"),
        ("name", "é" * 101, "name='ééé"),
        ("output", "/a\nb", "output='/a\\nb' must be a text without control characters"),
        ("data-path", "/\udcff", "data-path='/\\udcff' must be a text without control characters"),
        ("dataset", "files", "dataset='files' needs data-path=PATH"),
    ],
)
def test_values_out_of_range(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        resolve({key: value})


def test_trimming_half_of_everything_leaves_nothing() -> None:
    """Flower's FedTrimmedAvg demands less than a half, and would say so in the midst of a run."""
    message = "trim-fraction=0.5 must be at least 0 and at most 0.49"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        resolve({"trim-fraction": 0.5})
    assert resolve({"trim-fraction": 0.49}).trim_fraction == 0.49


def test_an_unknown_partition_names_all() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"partition": "dirichlett"})
    expected = f"partition='dirichlett' is unknown; choose one of: {', '.join(sorted(PARTITIONS))}"
    own = "or name your own: package.module:function or path/to/file.py:function"
    assert str(caught.value) == f"{expected}, {own}"
    assert resolve({"partition": "hf:DirichletPartitioner"}).partition.startswith("hf:")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("participant", "participants"),
        ("num_server_rounds", "num-server-rounds"),
        ("distil.variant", "distill.variant"),
        ("distill-variant", "distill.variant"),
        ("cost.client_seconds", "cost.client-seconds"),
        ("learning_rate", "learning-rate"),
    ],
)
def test_a_misspelt_key_gets_a_suggestion(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({wrong: 1})
    head, suggestions = str(caught.value).split("; did you mean ")
    assert head == f"configuration key {wrong!r} is unknown"
    assert right in suggestions.rstrip("?").split(" or ")


@pytest.mark.parametrize(
    ("key", "new"),
    [
        ("proxy-labelled", "proxy-labelled-examples=N: of N"),
        ("distill.labels", "proxy-labelled-examples=N: the labels that the distillation server"),
    ],
)
def test_a_key_of_an_earlier_version_names_what_does_its_work_now(key: str, new: str) -> None:
    with pytest.raises(ConfigError, match=f"^configuration key '{key}' is gone; use {new}"):
        resolve({key: "on"})
    assert key not in defaults()
    assert new.partition("=")[0] in defaults()


def test_a_key_like_no_other_gets_the_way_to_all() -> None:
    with pytest.raises(ConfigError, match="'xyzzy' is unknown; see `edge-fl config` for all keys"):
        resolve({"xyzzy": 1})


# ---------------------------------------------------------------------------------- combinations


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"averaging": "buffered", "distill.variant": "sync"},
            "averaging='buffered' waits for nobody, but distill.variant='sync' makes everybody "
            "wait; choose one of: async-continuous, async-plus, async-round",
        ),
        (
            {"proxy-labelled-examples": 1501, "proxy-examples": 1500},
            "proxy-labelled-examples=1501 can be at most proxy-examples=1500",
        ),
        (
            {"distill.lift": "on", "normalisation": "group"},
            "distill.lift='on' needs normalisation='batch'",
        ),
        (
            {"distill.lift": "on", "small-model": "lenet"},
            "distill.lift='on': lenet cannot grow into cnn12 at these widths; use cnn6 and cnn12 "
            "with large-width >= 2 x small-width",
        ),
        (
            {"distill.lift": "on", "small-width": 16, "large-width": 16},
            "distill.lift='on': cnn6 cannot grow into cnn12 at these widths",
        ),
    ],
)
def test_combinations_that_cannot_work(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        resolve(overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"num-server-rounds": 50_000},
            "num-server-rounds=50000 of 3 jobs each are more than 100,000, and clock='virtual'",
        ),
        (
            {"averaging": "buffered", "buffer-size": 200_000},
            "num-server-rounds=40 of 200000 jobs each are more than 100,000",
        ),
        (
            {"averaging": "buffered", "cost.dropout-probability": 0.9999},
            "num-server-rounds=40 of 30000 jobs each are more than 100,000",
        ),
        (
            {"cost.reverse-ratio": 1e-300},
            "a step of the distillation server lasts 5e-301 s and the run 457.285 s: more than "
            "100,000,000 steps",
        ),
        (
            {"mode": "consensus", "participants": 5000, "consensus.topology": "complete"},
            "complete of 5000 participants would have 12,497,500 edges, more than 250,000",
        ),
        (
            {
                "mode": "consensus",
                "participants": 1000,
                "consensus.topology": "random-regular",
                "consensus.degree": 500,
            },
            "random-regular of 1000 participants would have 250,000 edges, more than 20,000",
        ),
        (
            {"mode": "consensus", "consensus.steps": 10**7, "consensus.window": 1},
            "consensus.steps=10000000 are 10000000 windows of 1: at most 100000; use a larger",
        ),
    ],
)
def test_what_would_take_for_ever_is_refused_at_once(
    overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        preflight(resolve(overrides))


def test_on_the_real_clock_nothing_is_drawn_up_before() -> None:
    resolve({"clock": "real", "num-server-rounds": 50_000})


@pytest.mark.parametrize(
    "overrides",
    [
        {"averaging": "buffered", "distill.variant": "async-round"},
        {"averaging": "buffered", "mode": "average", "distill.variant": "sync"},  # not looked at
        {"mode": "average", "distill.lift": "on", "small-model": "lenet"},
        {"distill.lift": "on"},
        {"proxy-labelled-examples": 1500},
        {"mode": "average", "proxy-labelled-examples": 1501},  # not looked at
        {"proxy-examples": 10},  # of which all have labels
        {"dataset": "files", "data-path": "/data/own.npz"},
        {"targets": ""},
        {"sinks": "tensorboard, wandb"},
        {"output": "/tmp/runs", "data-root": "/data"},
    ],
)
def test_combinations_that_work(overrides: dict[str, Any]) -> None:
    resolve(overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"normalisation": "batch"},
            "mode='consensus' needs normalisation='group': BatchNorm's running statistics",
        ),
        (
            {"consensus.steps": 100, "consensus.window": 30},
            "consensus.steps=100 is no multiple of consensus.window=30; use e.g. "
            "consensus.steps=120",
        ),
        (
            {"consensus.references": "same-steps, more-steps"},
            "consensus.references='more-steps' is unknown; choose from: same-samples, same-steps",
        ),
        (
            {"consensus.references": "same-steps, same-steps"},
            "consensus.references='same-steps, same-steps' names one twice",
        ),
        (
            {"consensus.algorithm": "d-psgd", "consensus.exchange": "random"},
            "consensus.algorithm='d-psgd' works in synchronous rounds; use "
            "consensus.exchange='synchronous' (or 'auto')",
        ),
        (
            {"consensus.algorithm": "gossip", "consensus.exchange": "synchronous"},
            "consensus.algorithm='gossip' takes the mean with one neighbour after the other, so in "
            "rounds the last one counts most; use consensus.algorithm='d-psgd'",
        ),
        (
            {"consensus.step-seconds": 10.0, "consensus.loss": 0.25},
            "consensus.silence-seconds=60 would drop neighbours that are there: one is heard every "
            "80 s in the mean; use ten times that",
        ),
        (
            {"consensus.algorithm": "d-psgd", "clock": "real"},
            "clock='real' has no synchronous rounds",
        ),
        (
            {"consensus.exchange": "synchronous", "clock": "real"},
            "clock='real' has no synchronous rounds",
        ),
        (
            {"consensus.topology": "file"},
            "consensus.topology='file' and consensus.topology-file=PATH go together",
        ),
        (
            {"consensus.topology-file": "/sites.txt"},
            "consensus.topology='file' and consensus.topology-file=PATH go together",
        ),
    ],
)
def test_consensus_that_cannot_work(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        resolve({"mode": "consensus", **overrides})
    resolve(overrides)  # what the other systems do not look at


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"participants": 1}, "a topology needs at least 2 participants, not 1"),
        ({"participants": 2}, "a ring needs at least 3 participants, not 2; take a chain"),
        (
            {"consensus.topology": "hypercube", "participants": 6},
            "a hypercube has 2^m participants, not 6; take 4 or 8",
        ),
        (
            {"consensus.topology": "random-regular", "consensus.degree": 3, "participants": 5},
            "degree=3 times 5 participants is odd",
        ),
        (
            {"consensus.topology": "watts-strogatz", "consensus.degree": 3},
            "degree=3 must be even for watts-strogatz",
        ),
        (
            {"consensus.topology": "erdos-renyi", "consensus.probability": 0.01},
            "100 random graphs erdos-renyi of 8 participants were all disconnected; take "
            "probability=",
        ),
        (
            {"num-classes-per-partition": 11},
            "num_classes_per_partition=11 must be from 1 to 10, the number of classes",
        ),
        ({"consensus.algorithm": "relay-sgd"}, "relay-sgd needs a tree, such as chain, star"),
        ({"consensus.topology": "base-k"}, "base-k is a sequence of graphs, one a round"),
        (
            {"consensus.algorithm": "d-psgd", "consensus.interval": 5.5},
            "in synchronous rounds the interval is a whole number and divides the steps",
        ),
        ({"consensus.outages": "crash:8@1-2"}, "'crash:8@1-2': the nodes are 0 to 7"),
        ({"consensus.outages": "cut:0-4@1-2"}, "'cut:0-4@1-2': ring has no link 0-4"),
        ({"consensus.outages": "sleep"}, "'sleep' must look like crash:3@200-400"),
        (
            {"participants": 3, "consensus.outages": "leave:0@1, leave:1@5, pause:2@0-10"},
            "consensus.outages='leave:0@1, leave:1@5, pause:2@0-10': nobody is on at ",
        ),
        (
            {"consensus.topology": "file", "consensus.topology-file": "/nowhere/sites.txt"},
            "consensus.topology-file='/nowhere/sites.txt' cannot be read: ",
        ),
    ],
)
def test_consensus_that_does_not_fit_together(overrides: dict[str, Any], message: str) -> None:
    """What is found out before anything starts, though not from single keys."""
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        preflight(resolve({"mode": "consensus", **overrides}))


def test_the_participants_of_a_topology_file(tmp_path: Path) -> None:
    path = tmp_path / "sites.txt"
    path.write_text("lab shop\nshop yard\n")
    config = {
        "mode": "consensus",
        "consensus.topology": "file",
        "consensus.topology-file": str(path),
        "participants": 3,
    }
    preflight(resolve(config))
    with pytest.raises(ConfigError, match=r"the file has 3 nodes .* take participants=3"):
        preflight(resolve({**config, "participants": 4}))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_runs_with_the_defaults(algorithm: str) -> None:
    topology = "tree" if ALGORITHMS[algorithm].trees_only else "ring"
    config = {"mode": "consensus", "consensus.algorithm": algorithm, "consensus.topology": topology}
    preflight(resolve(config))


def test_lists_in_texts() -> None:
    config = resolve({"sinks": "wandb, tensorboard,"})
    assert config.sink_list == ("wandb", "tensorboard")
    assert resolve().sink_list == ()


# ------------------------------------------------------------------------- what follows from keys


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("distill", (3, "iid", "batch")),
        ("average", (3, "iid", "batch")),
        ("consensus", (8, "classes-per-participant", "group")),
    ],
)
def test_automatic_values(mode: str, expected: tuple[int, str, str]) -> None:
    config = resolve({"mode": mode})
    assert (config.participants, config.partition, config.normalisation) == expected
    chosen = resolve(
        {"mode": mode, "participants": 5, "partition": "halves", "normalisation": "group"}
    )
    assert (chosen.participants, chosen.partition, chosen.normalisation) == (5, "halves", "group")


def test_windows_are_the_rounds_of_the_consensus_system() -> None:
    config = resolve({"mode": "consensus", "consensus.steps": 120, "consensus.window": 30})
    assert (config.rounds, config.agrees, config.distils) == (4, True, False)
    other = resolve({"num-server-rounds": 7})
    assert (other.rounds, other.agrees) == (7, False)


def test_exchanges_follow_the_algorithm_unless_they_are_set() -> None:
    def synchronous(algorithm: str, exchange: str) -> bool:
        keys = {"consensus.algorithm": algorithm, "consensus.exchange": exchange}
        return resolve({"mode": "consensus", **keys}).consensus.synchronous

    assert [synchronous("ecl", e) for e in ("auto", "random", "synchronous")] == [0, 0, 1]
    assert [synchronous("d-psgd", e) for e in ("auto", "synchronous")] == [1, 1]


def test_references_are_numbered_after_the_participants() -> None:
    config = resolve(
        {"mode": "consensus", "participants": 4, "consensus.references": "same-samples,same-steps"}
    )
    assert config.consensus.reference_list == ("same-samples", "same-steps")
    assert [nodes_run_of(config).reference_of(n) for n in range(6)] == [
        "",
        "",
        "",
        "",
        "same-samples",
        "same-steps",
    ]


SWITCHES = ("publish_ema", "lift", "teacher_average")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_that_is_set_is_what_it_says(variant: str, name: str) -> None:
    for value, expected in (("on", True), ("off", False)):
        config = resolve({"distill.variant": variant, f"distill.{name.replace('_', '-')}": value})
        assert config.switch(name) is expected


@pytest.mark.parametrize(
    ("overrides", "on"),
    [
        ({"distill.variant": "sync"}, set()),
        ({"distill.variant": "async-round"}, set()),
        ({"distill.variant": "async-continuous"}, set()),
        ({"distill.variant": "sync-forward"}, set()),
        ({}, {"teacher_average", "publish_ema", "lift"}),
        ({"normalisation": "group"}, {"teacher_average", "publish_ema"}),
        ({"small-model": "lenet"}, {"teacher_average", "publish_ema"}),
        ({"large-model": "resnet20"}, {"teacher_average", "publish_ema"}),
        ({"small-width": 9}, {"teacher_average", "publish_ema"}),
    ],
)
def test_automatic_switches(overrides: dict[str, Any], on: set[str]) -> None:
    config = resolve(overrides)
    assert {name for name in SWITCHES if config.switch(name)} == on


@pytest.mark.parametrize(
    ("overrides", "plan"),
    [
        ({"mode": "average"}, DistillationPlan("none", 1)),
        ({"distill.variant": "sync-forward"}, DistillationPlan("sync", 20, 20)),
        ({"distill.variant": "sync"}, DistillationPlan("sync", 20)),
        ({"distill.variant": "async-round"}, DistillationPlan("round", 20)),
        ({"distill.variant": "async-continuous"}, DistillationPlan("continuous", 20)),
        ({"distill.reverse-steps": 7}, DistillationPlan("continuous", 7)),
    ],
)
def test_the_distillation_servers_plan(overrides: dict[str, Any], plan: DistillationPlan) -> None:
    assert resolve(overrides).schedule.plan == plan


def test_the_trace_is_the_configurations() -> None:
    config = resolve({"participants": 5, "num-server-rounds": 4, "fraction-train": 0.4})
    trace = config.trace()
    assert [len(a.jobs) for a in trace.aggregations] == [2, 2, 2, 2]
    buffered = resolve({"averaging": "buffered", "buffer-size": 2, "participants": 5}).trace()
    assert {len(a.jobs) for a in buffered.aggregations} == {2}
    # buffer-size is another rule's parameter and has no influence on rounds.
    assert resolve({"buffer-size": 1}).trace() == resolve({"buffer-size": 2}).trace()
    assert resolve({"mode": "average"}).trace().segments == ()


def test_what_mode_clock_and_averaging_say() -> None:
    config = resolve()
    assert (config.distils, config.virtual, config.buffered) == (True, True, False)
    other = resolve({"mode": "average", "clock": "real", "averaging": "buffered"})
    assert (other.distils, other.virtual, other.buffered) == (False, False, True)


def test_partition_parameters() -> None:
    config = resolve({"alpha": 0.7, "num-classes-per-partition": 3, "num-shards-per-partition": 4})
    assert dict(problem_of(config).parameters) == {
        "alpha": 0.7, "num_classes_per_partition": 3, "num_shards_per_partition": 4
    }  # fmt: skip


def test_a_default_that_is_missing_or_too_many_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = {**paths_of(RunConfig), "brand-new-key": ("brand_new_key",)}
    del paths["alpha"]
    monkeypatch.setattr(resolved, "paths_of", lambda _: paths)
    with pytest.raises(ConfigError, match=r"RunConfig differ in: alpha, brand-new-key$"):
        defaults.__wrapped__()


@pytest.mark.parametrize(
    "text",
    ["\ufeff[tool.flwr.app.config]", "[tool.flwr.app]\nconfig = 3", "[tool]", "mode = =", "\udcff"],
)
def test_defaults_that_cannot_be_read_end_in_a_sentence(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    monkeypatch.setattr("strategies.pyproject.PATH", path)
    with pytest.raises(ConfigError, match=r"\[tool\.flwr\.app\.config\]"):
        defaults.__wrapped__()


@pytest.mark.parametrize("averaging", FLOWER_RULES)
def test_every_flower_rule_is_a_choice(averaging: str) -> None:
    assert resolve({"averaging": averaging}).averaging == averaging


def test_the_type_is_what_the_name_says() -> None:
    assert isinstance(resolve(), RunConfig)


def test_heavy_ball_has_longer_steps() -> None:
    """By as much as its sum is longer than the running mean; of an algorithm without momentum not,
    whatever the key says."""

    def step_size(**keys: Any) -> float:
        values = {f"consensus.{key.replace('_', '-')}": value for key, value in keys.items()}
        return resolve({"consensus.learning-rate": 0.1, **values}).consensus.step_size

    assert step_size() == 0.1
    assert step_size(momentum=0.5, momentum_form="heavy-ball") == 0.2
    assert step_size(momentum_form="heavy-ball", algorithm="gradient-tracking") == 0.1


def test_a_value_of_former_times_is_what_it_is_called_now() -> None:
    former = resolve({"mode": "consensus", "consensus.carrier": "ray"})
    assert former.consensus.carrier == "sockets"
    assert former.flat()["consensus.carrier"] == "sockets"
