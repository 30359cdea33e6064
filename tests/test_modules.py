"""Any module whose trained parameters are float32: which kinds there are, and what cannot work."""

import re
from pathlib import Path

import pytest
from flwr.app import Message
from torch import nn

from fl_app.config import resolve
from fl_app.problem import problem_of
from fl_app.trial import try_out
from strategies.problem import flat_model
from tests import harness, some_tasks

TINY_AVERAGE = {
    "participants": 2,
    "num-server-rounds": 1,
    "local-steps": 1,
    "batch-size": 8,
    "evaluate-examples": 20,
}
LORA = f"{Path(__file__).resolve().parents[1] / 'examples' / 'lora.py'}:Lora"
POSSIBLE = "mode=consensus: possible", "engine stacked: possible"


@pytest.mark.parametrize(
    ("kind", "trained", "lines"),
    [
        (some_tasks.Normed, 7 * 8 + 16 + 98, POSSIBLE),
        (
            some_tasks.Recurrent,
            7 * 8 + 64 * (8 + 16 + 2) + 34,
            (POSSIBLE[0], "engine stacked: not possible: "),  # torch.func has no LSTM
        ),
        (some_tasks.Attending, None, POSSIBLE),
        (some_tasks.Dropping, None, (POSSIBLE[0], "engine stacked: not possible: ")),
        (some_tasks.Tied, 7 * 8 + 49 * 8, POSSIBLE),
        (some_tasks.Frozen, 98, POSSIBLE),
        (
            some_tasks.BatchNormed,
            7 * 8 + 96 + 98,
            (
                "mode=consensus: not possible: mode='consensus': 2 is a BatchNorm1d, whose running",
                "engine stacked: not possible: the model has buffers",
            ),
        ),
        (
            some_tasks.Placed,
            7 * 8 + 98,
            (
                "mode=consensus: not possible: mode='consensus': the model's state has the buffer "
                "places, and nodes exchange parameters alone; register constants with persistent=F",
            ),
        ),
    ],
)
def test_a_kind_of_module_is_learnt_or_said_why_not(
    kind: type[nn.Module],
    trained: int | None,
    lines: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = type("Its", (some_tasks.Words,), {"kind": kind})
    monkeypatch.setattr(some_tasks, kind.__name__ + "Task", task, raising=False)
    told = list(try_out({"task": f"tests.some_tasks:{kind.__name__}Task"}))
    [count] = re.findall(r"small model: ([\d,]+) trained", "\n".join(told))
    assert trained in (None, int(count.replace(",", "")))
    for line in lines:
        assert any(each.startswith(line) for each in told), told


@pytest.mark.parametrize("task", ["tests.some_tasks:Adapted", LORA])
def test_mail_is_no_larger_than_the_adapter(task: str, tmp_path: Path) -> None:
    """Four bytes for each trained parameter; the frozen ones, and tables of constants, stay."""
    if task == LORA:
        for package in ("transformers", "peft"):
            pytest.importorskip(package, reason="needs the extra `lora`")
    module = flat_model(problem_of(resolve({"task": task})), "small").module
    adapter = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in adapter) or task != LORA
    numbers = sum(each.numel() for each in adapter.values())
    assert numbers < sum(each.numel() for each in module.parameters()) / 2
    sizes = set()

    def weigh(message: Message, reply: Message) -> Message:
        for content in (message.content, reply.content):
            records = content.array_records.values()
            sizes.add(sum(len(array.data) for record in records for array in record.values()))
        return reply

    given = {"task": task, "mode": "average", "learning-rate": 0.01}
    summary, _ = harness.run(tmp_path, given, TINY_AVERAGE, tamper=weigh)
    assert summary["status"] == "completed"
    assert 4 * numbers <= max(sizes) <= 4 * numbers + 2 * 128  # numpy's header of each array
