"""What a clause of a contract raises."""

from strategies.errors import EdgeFlError


class ContractError(AssertionError, EdgeFlError):
    """Something does not keep to its contract; the message says to what."""


def require(holds: bool, otherwise: str) -> None:
    """Raise ContractError with `otherwise` unless it holds."""
    if not holds:
        raise ContractError(otherwise)
