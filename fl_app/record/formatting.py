"""How numbers read in lines, tables and reports; "-" is what is not known."""


def number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def scientific(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def share(fraction: float | None) -> str:
    """Return `percent` with its sign."""
    return "-" if fraction is None else f"{percent(fraction)} %"


def megabytes(count: float | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f}"


def duration(seconds: float | None) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
