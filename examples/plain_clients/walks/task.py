"""What the distillation server has to know."""

from torch import nn

from strategies.task import Classification, Examples
from walks.learning import KINDS, Net, walks


class Walks(Classification):
    """`Net`, and a wider one beside it that learns from it."""

    classes = KINDS

    def model(self, role: str) -> nn.Module:
        return Net() if role == "small" else Net(wide=32)

    def training(self) -> Examples:  # of the server: clients have their own
        return Examples(*walks(400, seed=1000))

    def test(self) -> Examples:
        return Examples(*walks(300, seed=1001))
