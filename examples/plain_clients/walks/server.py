"""Flower's `FedAvg` was here; now a large model learns behind the average."""

from flwr.app import ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

from edge_fl import Distillation
from walks.learning import Net, walks

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for some rounds, and say how good the two models are."""
    given = context.run_config
    settings = {
        "participants": int(given["clients"]),
        "proxy-examples": 300,
        "proxy-labelled-examples": 300,  # what the server has, it knows
        "distill.batch-size": 32,
    }
    strategy = Distillation(settings, task="walks.task:Walks", clients="plain")
    result = strategy.start(
        grid,
        num_rounds=int(given["rounds"]),
        train_config=ConfigRecord({"lr": float(given["lr"])}),
    )
    for name, arrays, net in (
        ("small", result.arrays, Net()),
        ("large", strategy.published, Net(wide=32)),
    ):
        net.load_state_dict(arrays.to_torch_state_dict())
        print(f"the {name} model is right in {100 * accuracy(net):.1f} % of 300 new walks")


def accuracy(net: Net) -> float:
    """Of series that nobody has seen."""
    series, kinds = walks(300, seed=1001)
    return float((net(series).argmax(1) == kinds).float().mean())
