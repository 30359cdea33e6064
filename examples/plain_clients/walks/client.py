"""A client as Flower's strategies ask for it."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from walks.learning import Net, train, walks

app = ClientApp()


@app.train()
def learn(message: Message, context: Context) -> Message:
    """From a state dict to the one that is better for what this client has seen."""
    net = Net()
    net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    series, kinds = walks(200, seed=1 + int(context.node_config["partition-id"]))
    rate = message.content.config_records["config"]["lr"]
    loss = train(net, series, kinds, float(str(rate)))
    metrics = MetricRecord({"num-examples": len(kinds), "train_loss": loss})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)
