"""The distillation loss: by hand, by the reference, and its gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.distillation.losses import distillation_loss, ema_decay
from tests import oracle
from tests.some_tasks import Points

TASK = Points()


def logits(seed: int, batch: int = 5, classes: int = 4, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64)


def test_by_hand_at_temperature_one() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    assert distillation_loss(TASK, student, teacher, 1.0).item() == pytest.approx(
        0.130812, abs=1e-6
    )


def test_by_hand_with_temperature_and_labels() -> None:
    """At T = 2 teacher logits (2 ln 3, 0) are (3/4, 1/4) again, and T^2 = 4 times 0.130812 is
    0.523248; the cross entropy of the even student is ln 2. With half of it: 0.869822."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    labels = torch.tensor([1])
    assert distillation_loss(TASK, student, teacher, 2.0).item() == pytest.approx(
        0.523248, abs=1e-6
    )
    both = distillation_loss(TASK, student, teacher, 2.0, labels, 0.5)
    assert both.item() == pytest.approx(0.869822, abs=1e-6)


def test_labels_are_those_of_the_first_images() -> None:
    """Three images, the first of them with a label: the first term is the mean over all three, the
    second is that one's cross entropy, ln 2, alone."""
    student, teacher = torch.zeros(3, 2), torch.tensor([[2 * math.log(3), 0.0]] * 3)
    loss = distillation_loss(TASK, student, teacher, 2.0, torch.tensor([1]), 3.0)
    assert loss.item() == pytest.approx(0.523248 + 3 * math.log(2), abs=1e-6)


@pytest.mark.parametrize("label_weight", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_equals_the_reference_and_its_gradient(temperature: float, label_weight: float) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    reference = student.detach().clone().requires_grad_()
    labels = torch.tensor([0, 3, 1])
    loss = distillation_loss(TASK, student, teacher, temperature, labels, label_weight)
    expected = oracle.distillation_loss(reference, teacher, temperature, labels, label_weight)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 999), st.floats(0.5, 10))
def test_never_negative_and_zero_for_the_teacher_itself(seed: int, temperature: float) -> None:
    """Gibbs' inequality; softmax does not see what is added to all logits of an image."""
    student, teacher = logits(seed), logits(seed + 1)
    assert distillation_loss(TASK, student, teacher, temperature) > 0
    same = distillation_loss(TASK, teacher + 5.0, teacher, temperature)
    assert same.item() == pytest.approx(0, abs=1e-9)


def test_the_temperature_keeps_the_scale_of_the_gradient() -> None:
    """For T to infinity T^2 KL tends to |g - t|^2 / (2 classes) with centred logits (Hinton et al.
    2015, section 2.1), so its gradient has a limit: here within 1 % at T = 1000."""
    student, teacher = logits(2, batch=1).requires_grad_(), logits(3, batch=1)
    distillation_loss(TASK, student, teacher, 1000.0).backward()
    assert student.grad is not None
    g, t = (x - x.mean() for x in (student.detach(), teacher))
    torch.testing.assert_close(student.grad, (g - t) / 4, rtol=0.01, atol=1e-3)


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    distillation_loss(TASK, student, teacher, 2.0).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_labels_without_weight_change_nothing() -> None:
    student, teacher, labels = logits(0), logits(1), torch.tensor([0, 0, 0, 0, 0])
    assert distillation_loss(TASK, student, teacher, 2.0, labels, 0.0) == distillation_loss(
        TASK, student, teacher, 2.0
    )


def test_sure_teachers_and_students_give_finite_losses() -> None:
    """Logits of +-1000: probabilities that underflow to 0, whose logarithm must not be taken."""
    student = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    loss = distillation_loss(TASK, student, torch.tensor([[-1000.0, 1000.0]]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2000.0)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_decay_of_the_weight_average() -> None:
    """(1 + n) / (10 + n): 0.1, 2/11, ..., until 0.99 at n = 890 (891 / 900)."""
    assert ema_decay(0) == pytest.approx(0.1)
    assert ema_decay(1) == pytest.approx(2 / 11)
    assert ema_decay(889) == pytest.approx(890 / 899)
    assert ema_decay(889) < 0.99
    assert ema_decay(890) == ema_decay(10**6) == pytest.approx(0.99)
    assert ema_decay(10**6, limit=0.5) == 0.5
