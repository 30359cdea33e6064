"""What a clause of a contract raises."""


class ContractError(AssertionError):
    """Something does not keep to its contract; the message says to what."""


def require(holds: bool, otherwise: str) -> None:
    """Raise ContractError with `otherwise` unless it holds."""
    if not holds:
        raise ContractError(otherwise)
