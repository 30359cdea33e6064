"""A carrier in this process: what is published is heard at once, unless the test loses it."""

from collections.abc import Callable
from fnmatch import fnmatchcase


class Loop:
    """All parties in one. lose: whether a message of this key and payload gets lost."""

    def __init__(self, lose: Callable[[str, bytes], bool] = lambda key, payload: False) -> None:
        self._lose = lose
        self._heard: dict[int, tuple[str, Callable[[str, bytes], object]]] = {}
        self.published: list[tuple[str, int]] = []  # key, bytes

    def publish(self, key: str, payload: bytes, *, urgent: bool = False, kind: str = "") -> bool:
        self.published.append((key, len(payload)))
        if not self._lose(key, payload):
            for expression, callback in list(self._heard.values()):
                if fnmatchcase(key, expression):
                    callback(key, payload)
        return True

    def subscribe(
        self, expression: str, callback: Callable[[str, bytes], object]
    ) -> Callable[[], None]:
        number = len(self._heard) + 1
        self._heard[number] = expression, callback
        return lambda: self._heard.pop(number, None) and None
