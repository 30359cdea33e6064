"""What no single key can tell: which values cannot be together."""

import math
from collections.abc import Sequence
from pathlib import Path

from fl_app.config.model import (
    MEAN_RULES,
    PATH_KEYS,
    REFERENCES,
    SINKS,
    RunConfig,
    uncalibrated,
)
from fl_app.config.schema import at, paths_of
from fl_app.data.sets import FILES
from strategies.consensus.algorithms import ALGORITHMS
from strategies.consensus.own import entry_of
from strategies.distillation.settings import (
    CENTRALIZED,
    SERVER_ALONE,
    SMALL_AVERAGE,
    SMALL_CALIBRATED,
)
from strategies.errors import ConfigError
from strategies.robust import enough
from strategies.secure import LEAST_MEMBERS

_MOST_JOBS = 100_000  # each takes some 20 us, in the ServerApp and in the distillation server
_MOST_WINDOWS = 100_000
_LONGEST_NAME = 200  # bytes: file systems have 255, and files beside it get longer names


def _float_list(key: str, text: str, most: float) -> list[float]:
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [float("nan")]
    if not all(0 < value <= most and math.isfinite(value) for value in values):
        what = f"accuracies in (0, {most:g}]" if most == 1 else "positive numbers"
        raise ConfigError(f"{key}={text!r} must be {what} with commas between them")
    if len({f"{value:g}" for value in values}) < len(values):
        raise ConfigError(f"{key}={text!r} names one twice")
    return values


def _check_words(key: str, words: Sequence[str], choices: Sequence[str]) -> None:
    for word in words:
        if word not in choices:
            raise ConfigError(f"{key}={word!r} is unknown; choose from: {', '.join(choices)}")
    if len(set(words)) < len(words):
        raise ConfigError(f"{key}={', '.join(words)!r} names one twice")


def check(config: RunConfig) -> None:
    """What no single key can tell."""
    c, d = config, config.distill
    _float_list("targets", c.targets, most=1.0 if c.of_images else math.inf)
    _check_words("sinks", c.sink_list, SINKS)
    known = (SMALL_AVERAGE, SMALL_CALIBRATED, SERVER_ALONE, CENTRALIZED)
    _check_words("distill.references", c.references, known)
    if SERVER_ALONE in c.references and not c.proxy_labelled_examples:
        raise ConfigError(
            f"distill.references={SERVER_ALONE!r} learns from labels of the distillation server, "
            f"which has none: use proxy-labelled-examples=N, or leave it out"
        )
    if c.buffered and c.distils and c.variant.policy == "sync":
        raise ConfigError(
            f"averaging='buffered' waits for nobody, but distill.variant={d.variant!r} makes "
            f"everybody wait; choose one of: async-continuous, async-plus, async-round"
        )
    if c.agrees:
        _check_consensus(c)
    least, formula = enough(c.averaging, c.num_malicious_nodes)
    if c.cohort < least:
        raise ConfigError(
            f"averaging={c.averaging!r} against num-malicious-nodes={c.num_malicious_nodes} needs "
            f"at least participants={least} in a round ({formula}), and there are {c.cohort}"
        )
    if (c.attack == "none") != (c.attackers == 0):
        raise ConfigError(
            f"attack={c.attack!r} and attackers={c.attackers} go together: say who and what"
        )
    if c.attackers >= c.participants:
        raise ConfigError(
            f"attackers={c.attackers} must be fewer than participants={c.participants}"
        )
    if c.privacy.on:
        _check_privacy(c)
    if c.secure_aggregation and not c.agrees:
        _check_secure(c)
    if c.distils and c.proxy_examples and c.proxy_labelled_examples > c.proxy_examples:
        raise ConfigError(
            f"proxy-labelled-examples={c.proxy_labelled_examples} can be at most "
            f"proxy-examples={c.proxy_examples}: it says how many of these have labels"
        )
    if c.distils and d.lift == "on":
        if not c.of_images:
            raise ConfigError("distill.lift='on' is for the models of task=images")
        if c.normalisation != "batch":
            raise ConfigError("distill.lift='on' needs normalisation='batch'")
        if not c.nests:
            raise ConfigError(
                f"distill.lift='on': {c.small_model} cannot grow into {c.large_model} at these "
                f"widths; use cnn6 and cnn12 with large-width >= 2 x small-width"
            )
    if c.distils and d.calibrate == "on" and (why := uncalibrated(c)):
        raise ConfigError(f"distill.calibrate='on' cannot be here: {why}")
    if SMALL_CALIBRATED in c.references and not c.calibrates:
        raise ConfigError(
            f"distill.references={SMALL_CALIBRATED!r} needs distill.calibrate='on'; switch it on, "
            f"or leave it out"
        )
    if c.virtual and not c.agrees and c.jobs > _MOST_JOBS:
        raise ConfigError(
            f"num-server-rounds={c.num_server_rounds} of {c.jobs / c.num_server_rounds:.0f} jobs "
            f"each are more than {_MOST_JOBS:,}, and clock='virtual' draws up the schedule of all "
            f"before anything starts; use fewer, or clock='real'"
        )
    if c.min_participants > (0 if c.virtual else c.participants):
        raise ConfigError(
            f"min-participants={c.min_participants} can be at most participants={c.participants}, "
            f"and on clock='virtual' everybody takes part from the start: leave it at 0"
        )
    if len(set(c.device_list)) < len(c.device_list):
        raise ConfigError(f"devices={c.devices!r} names one twice")
    if c.of_images and c.dataset == FILES and not c.data_path:
        raise ConfigError(f"dataset={FILES!r} needs data-path=PATH (an .npz file or a folder)")
    for key in PATH_KEYS:
        path = str(at(c, paths_of(RunConfig)[key]))
        if path and not Path(path).is_absolute():
            raise ConfigError(f"{key}={path!r} must be an absolute path: the app runs elsewhere")
    check_run_name(f"name={c.name!r}", c.name)


def check_run_name(what: str, name: str) -> None:
    """That a run's directory can have this name. ConfigError, with `what` in front."""
    if name and (name in (".", "..") or "/" in name or len(name.encode()) > _LONGEST_NAME):
        raise ConfigError(
            f"{what} must be the name of a directory, without / and of at most {_LONGEST_NAME} "
            f"bytes"
        )


def _check_secure(config: RunConfig) -> None:
    """The server learns sums only, so nothing may need a single update."""
    c = config
    if c.privacy.of_clients:
        raise ConfigError(
            f"secure-aggregation=true cannot be with privacy.clients={c.privacy.clients!r}, for "
            f"which the server clips each participant's update; privacy.samples needs no server"
        )
    if c.averaging not in (*MEAN_RULES, "buffered"):
        raise ConfigError(
            f"secure-aggregation=true cannot be with averaging={c.averaging!r}, which compares "
            f"single updates; use one of: {', '.join(MEAN_RULES)}, buffered"
        )
    if c.mail_precision != "float32":
        raise ConfigError(
            f"secure-aggregation=true cannot be with mail-precision={c.mail_precision!r}: what is "
            f"masked are fixed-point numbers of 32 bits; use mail-precision='float32'"
        )
    members, key = (c.buffer_size, "buffer-size") if c.buffered else (c.cohort, "participants")
    if members < LEAST_MEMBERS:
        raise ConfigError(
            f"secure-aggregation=true sums {members} updates with {key}={members}, and a sum of "
            f"fewer than {LEAST_MEMBERS} tells one participant another's: use {key}={LEAST_MEMBERS}"
        )
    if c.buffered and members > c.participants:
        raise ConfigError(
            f"secure-aggregation=true: a buffer of buffer-size={members} is never full, for each "
            f"of participants={c.participants} has one update in it; use at most as many"
        )


def _check_privacy(config: RunConfig) -> None:
    name = "clients" if config.privacy.of_clients else "samples"
    if config.agrees:
        raise ConfigError(
            f"privacy.{name} is for mode='distill' and 'average': no server makes an average "
            f"here that could be given noise, and nodes train without it; see docs/privacy.md"
        )
    if config.privacy.samples and config.precision != "float32":
        raise ConfigError(
            f"privacy.samples=true cannot be with precision={config.precision!r}: gradients of "
            f"single examples are float32's; use precision=float32"
        )
    if config.privacy.samples and config.adjust_logits:
        raise ConfigError(
            f"privacy.samples=true cannot be with adjust-logits={config.adjust_logits}: an example "
            f"changes the shares of the classes, and with them the gradients of all others, which "
            f"no noise hides; use adjust-logits=0"
        )
    if config.privacy.of_clients and config.averaging not in MEAN_RULES:
        reason = (
            "lets participants come at times of their own, and some more often than others"
            if config.buffered
            else "does not bound what one participant can change by the clipping norm"
        )
        raise ConfigError(
            f"privacy.clients={config.privacy.clients!r} cannot be with averaging="
            f"{config.averaging!r}, which {reason}; use one of: {', '.join(MEAN_RULES)}"
        )


def _check_rounded(config: RunConfig) -> None:
    """Neighbours' mail may have fewer bits only where its limit is that of whole mail."""
    c, entry = config.consensus, entry_of(config.consensus.algorithm)
    told = f"mail-precision={config.mail_precision!r} must be 'float32' for {c.algorithm}"
    if entry.unrounded:
        others = ", ".join(sorted(name for name, e in ALGORITHMS.items() if not e.unrounded))
        raise ConfigError(
            f"{told}: {entry.unrounded}; those whose mail may be rounded are: {others}"
        )
    splits = c.algorithm != "gossip" and entry.exchange == "random"
    if splits and c.synchronous and entry.overrides.get("theta", c.theta) == 1:
        raise ConfigError(
            f"{told} with theta=1 in synchronous rounds: there its mail never comes to rest, so no "
            f"rounding vanishes; use consensus.exchange='random', or an algorithm with theta=0.5"
        )


def _check_silence(config: RunConfig) -> None:
    """A neighbour is heard every interval * step-seconds / (1 - loss) seconds, in the mean. Who is
    less patient than that drops most neighbours; a run that does so now and then may be meant."""
    c = config.consensus
    every = (2 if c.one_way else 1) * c.interval * c.step_seconds / (1 - c.loss)
    if c.silence_seconds < every:
        raise ConfigError(
            f"consensus.silence-seconds={c.silence_seconds:g} would drop neighbours that are "
            f"there: one is heard every {every:.3g} s in the mean; use ten times that"
        )


def _check_consensus(config: RunConfig) -> None:
    c = config.consensus
    if config.of_images and config.normalisation == "batch":
        raise ConfigError(
            "mode='consensus' needs normalisation='group': BatchNorm's running statistics describe "
            "a node's own data, and neighbours can neither exchange nor average them"
        )
    if c.steps % c.window:
        raise ConfigError(
            f"consensus.steps={c.steps} is no multiple of consensus.window={c.window}; use e.g. "
            f"consensus.steps={c.steps + c.window - c.steps % c.window}"
        )
    if config.rounds > _MOST_WINDOWS:
        raise ConfigError(
            f"consensus.steps={c.steps} are {config.rounds} windows of {c.window}: at most "
            f"{_MOST_WINDOWS}; use a larger consensus.window"
        )
    if config.mail_precision != "float32":
        _check_rounded(config)
    _check_words("consensus.references", c.reference_list, REFERENCES)
    if entry_of(c.algorithm).exchange == "synchronous" and not c.synchronous:
        raise ConfigError(
            f"consensus.algorithm={c.algorithm!r} works in synchronous rounds; use "
            f"consensus.exchange='synchronous' (or 'auto')"
        )
    if c.synchronous and c.algorithm == "gossip":
        raise ConfigError(
            "consensus.algorithm='gossip' takes the mean with one neighbour after the other, so in "
            "rounds the last one counts most; use consensus.algorithm='d-psgd', its form for rounds"
        )
    if c.synchronous and not config.virtual:
        raise ConfigError(
            "clock='real' has no synchronous rounds, for nobody waits there; use clock='virtual' "
            "or an algorithm of random exchanges"
        )
    if config.virtual and c.algorithm != "isolated" and c.loss < 1:
        _check_silence(config)
    if config.virtual and c.carrier == "zenoh":
        raise ConfigError(
            "consensus.carrier='zenoh' drops mail that a newer one overtakes, and clock='virtual' "
            "needs all of it; use clock='real', or consensus.carrier=grid"
        )
    if c.encrypt and (config.virtual or c.carrier not in ("auto", "zenoh")):
        raise ConfigError(
            "consensus.encrypt=true is for mail over zenoh: on devices, with clock='real' and "
            "consensus.carrier=zenoh"
        )
    if (c.topology == "file") != bool(c.topology_file):
        raise ConfigError("consensus.topology='file' and consensus.topology-file=PATH go together")
