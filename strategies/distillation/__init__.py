"""Federated averaging with a distillation server in the background."""
