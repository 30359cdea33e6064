"""The server's side: strategies by mode, and below them the pure mathematics they consist of."""

# Mode -> "module:class" of the Flower strategy that runs it. By name, because the modules import
# torch and Flower, which the pure modules of this package do without.
STRATEGIES = {
    "average": "strategies.distillation.strategy:Distillation",
    "consensus": "strategies.consensus.strategy:Consensus",
    "distill": "strategies.distillation.strategy:Distillation",
}
