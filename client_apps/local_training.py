"""A window of work for one host: local training of the participants it hosts."""

import time
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from client_apps.bench import bench_of, check_data_set, shard_of
from client_apps.failures import account_of
from client_apps.training import train_locally
from fl_app.config import RunConfig, resolve
from fl_app.errors import EdgeFlError
from strategies.attacks import FORGERIES
from strategies.privacy import noise_generator
from strategies.randomness import rng


def prepare(message: Message, context: Context) -> Message:
    """Load the model and the data of the participants named in the message.

    In: config participants, and data: the digest of the run's data set on the server. Out: config
    fault, "" or what is wrong with them, examples, how many images each has, and unused, what of
    the device's own data is not read.
    """
    config = resolve(dict(context.run_config))
    order: Any = message.content["config"]
    own_data = str(context.node_config.get("data-path", ""))
    fault, shards = "", []
    try:
        bench_of(config)
        check_data_set(config, own_data, order["data"])
        shards = [shard_of(config, p, own_data) for p in order["participants"]]
    except EdgeFlError as error:
        fault = str(error)
    unused = list(dict.fromkeys(line for shard in shards for line in shard.unused))
    examples = [len(shard) for shard in shards]
    answer = ConfigRecord({"fault": fault, "examples": examples, "unused": unused})
    return Message(RecordDict({"config": answer}), reply_to=message)


def train(message: Message, context: Context) -> Message:
    """Do every job named in the message, each from the model in it.

    In: arrays weights (p,) and buffers (q,), config participants and indices (a job is the index-th
    of its participant, which names its random batches). Out, for each job J = "participant.index":
    arrays weights.J and buffers.J, metrics loss.J, examples.J and seconds.J, or config error.J when
    its training failed, which does not touch the others.
    """
    config = resolve(dict(context.run_config))
    torch.set_num_threads(config.client_threads)
    # Any: Flower's signatures do not tell which values a record of which kind has.
    arrays: Any = message.content["arrays"]
    order: Any = message.content["config"]
    weights, buffers = arrays["weights"].numpy(), arrays["buffers"].numpy()
    own_data = str(context.node_config.get("data-path", ""))
    results: dict[str, Array] = {}
    metrics: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for participant, index in zip(order["participants"], order["indices"], strict=True):
        start, job = time.monotonic(), f"{participant}.{index}"
        try:
            loss, examples, state = _train_one(
                config, participant, index, weights, buffers, own_data
            )
        except Exception as error:  # whatever it is, the server must hear of it
            errors[f"error.{job}"] = account_of(error)
            continue
        for name, vector in state.items():
            results[f"{name}.{job}"] = Array(vector)
        metrics[f"loss.{job}"] = loss
        metrics[f"examples.{job}"] = examples
        metrics[f"seconds.{job}"] = time.monotonic() - start
    content = RecordDict(
        {
            "arrays": ArrayRecord(results),
            "metrics": MetricRecord(metrics),
            "config": ConfigRecord(errors),
        }
    )
    return Message(content, reply_to=message)


def _train_one(
    config: RunConfig,
    participant: int,
    index: int,
    weights: np.ndarray,
    buffers: np.ndarray,
    own_data: str,
) -> tuple[float, int, dict[str, Any]]:
    bench = bench_of(config)
    shard = shard_of(config, participant, own_data)
    bench.model.load(weights, buffers)
    generator = rng(config.seed, "batches", participant, index)
    if config.privacy.samples:  # its batches, too, have to stay secret
        seed = config.seed if config.virtual else None
        generator = noise_generator(seed, "samples", participant, index)
    loss = train_locally(
        bench.model,
        torch.from_numpy(shard.images).to(bench.device),
        torch.from_numpy(shard.labels).to(bench.device),
        config,
        generator,
        mean=bench.mean,
        std=bench.std,
        flip=bench.flip,
    )
    state = bench.model.state()
    if (attack := config.attack_of(participant)) in FORGERIES:
        generator = rng(config.seed, "attack", participant, index)
        change = state["weights"] - weights
        state["weights"] = weights + FORGERIES[attack](change, config.attack_scale, generator)
    return loss, len(shard.labels), state
