"""Precision of training: bfloat16 is near float32 and repeats, and is refused where it is slow."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from client_apps.local_model import local_model_of
from client_apps.training import train_locally
from fl_app.config import RunConfig, resolve
from fl_app.data import Preparation
from fl_app.preflight import preflight
from fl_app.problem import problem_of
from fl_app.settings import training_of
from strategies.arithmetic import ARITHMETICS, lack, outputs_of
from strategies.errors import ConfigError
from strategies.problem import flat_model
from strategies.randomness import rng
from strategies.task import Examples
from tests.test_learner import learner_with, small_vectors

SMALL = {
    "small-width": 8, "large-width": 8, "batch-size": 16, "local-steps": 4,
    "distill.batch-size": 16, "distill.lift": "off",
}  # fmt: skip
PREPARE = Preparation((0.3,), (0.4,), augmented=True)
BOTH = pytest.mark.parametrize(
    ("values", "key"),
    [({}, "precision"), ({"mode": "consensus"}, "consensus.precision")],
    ids=["distill", "consensus"],
)


def trained(config: RunConfig) -> torch.Tensor:
    """A participant's model."""
    model = flat_model(problem_of(config), "small")
    images = torch.from_numpy(rng(0, "i").integers(0, 256, (40, 1, 28, 28), dtype=np.uint8))
    examples = Examples(images, torch.arange(40) % 10)
    loss = functional.cross_entropy
    train_locally(
        model, examples, training_of(config), rng(0, "batches"),
        learning_rate=config.learning_rate, prepare=PREPARE, loss=loss,
    )  # fmt: skip
    return model.weights - flat_model(problem_of(config), "small").weights


def distilled(config: RunConfig) -> torch.Tensor:
    """The distillation server's model."""
    learner = learner_with(config)
    learner.set_teacher(1, **small_vectors(config))
    for _ in range(3):
        learner.reverse_step()
    return (
        torch.from_numpy(learner.state()[0]["weights"])
        - flat_model(problem_of(config), "large").weights
    )


def forward_distilled(config: RunConfig) -> torch.Tensor:
    """What a small model becomes by what the large one knows."""
    learner = learner_with(config)
    learner.set_teacher(1, **small_vectors(config))
    before = small_vectors(config, seed=7)
    after = learner.forward_distil(1, before["weights"], before["buffers"])
    return torch.from_numpy(after["weights"] - before["weights"])


@pytest.mark.parametrize("work", [trained, distilled, forward_distilled])
def test_bfloat16_is_near_float32_and_repeats(work: Callable[[RunConfig], torch.Tensor]) -> None:
    exact = work(resolve(SMALL))
    rough, again = (work(resolve({**SMALL, "precision": "bf16"})) for _ in range(2))
    assert rough.dtype == torch.float32
    assert torch.equal(rough, again)
    # AdamW's first steps have the length of the step size, whatever small gradients there are.
    assert 1e-5 < (rough - exact).norm() / exact.norm() < 0.5
    assert functional.cosine_similarity(rough, exact, dim=0) > 0.8


def test_tf32_is_float32_on_a_cpu() -> None:
    inputs, module = torch.randn(2, 3), torch.nn.Linear(3, 4)
    assert torch.equal(outputs_of(module, inputs, "tf32"), module(inputs))


def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


@BOTH
def test_a_processor_without_instructions_for_it_refuses_bfloat16(
    values: dict[str, str], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the server before anything starts, and on a device, whose processor may be another."""
    without_instructions(monkeypatch)
    config = resolve({**values, key: "bf16", "device": "cpu"})
    for check in (preflight, lambda c: local_model_of(problem_of(c))):
        with pytest.raises(ConfigError, match=rf"^{key}='bf16': .*AVX512-BF16.*{key}=float32"):
            check(config)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    local_model_of(problem_of(config))


@BOTH
def test_tf32_needs_a_gpu(values: dict[str, str], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}='tf32'.*GPU.*{key}=float32"):
        preflight(resolve({**values, key: "tf32", "device": "cpu"}))


@pytest.mark.parametrize("precision", ARITHMETICS)
@pytest.mark.parametrize(("capability", "fine"), [((7, 5), False), ((8, 0), True)])
def test_old_gpus_have_float32_alone(
    precision: str, capability: tuple[int, int], fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    why = lack(precision, "cuda")
    assert why == "" if fine or precision == "float32" else "NVIDIA T4" in why


def test_gradients_of_single_examples_are_float32() -> None:
    with pytest.raises(ConfigError, match=r"privacy.samples=true.*precision=float32"):
        resolve(
            {"mode": "average", "normalisation": "group", "privacy.samples": True,
             "precision": "bf16"}
        )  # fmt: skip
