"""Write the app's embedded tables and text from packages that have them.

    python -m experiments.embed_tables_and_text

Needs scikit-learn, for its tables, and takes the text from this Python's own documentation
(`pydoc_data`). Paragraphs that stand in more than one of its topics are kept once, or what a model
is tested on would be among what it was trained on. What has been written does not depend on the
versions of either any more: that is what it is for.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from fl_app.data.embedded import DIRECTORY


def write(name: str, records: Iterable[Any]) -> Path:
    """One JSON text a line."""
    path = DIRECTORY / f"{name}.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="ascii")
    return path


def breast_cancer() -> list[list[Any]]:
    """The names of the columns, and then a row each; the last column is the diagnosis."""
    from sklearn.datasets import load_breast_cancer  # pyright: ignore[reportMissingImports]

    data = load_breast_cancer()
    names = [name.replace(" ", "-") for name in data.feature_names]
    words = [str(data.target_names[number]) for number in data.target]
    rows = zip(data.data.tolist(), words, strict=True)
    return [[*names, "diagnosis"], *([*row, word] for row, word in rows)]


def diabetes() -> list[list[Any]]:
    """As measured; the last column is how far the illness was a year later."""
    from sklearn.datasets import load_diabetes  # pyright: ignore[reportMissingImports]

    data = load_diabetes(scaled=False)
    rows = zip(data.data.tolist(), data.target.tolist(), strict=True)
    return [[*data.feature_names, "progression"], *([*row, target] for row, target in rows)]


def python_topics() -> list[list[str]]:
    """Topics with their texts, the shortest first to have its paragraphs."""
    seen: set[str] = set()
    kept = {}
    for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
        paragraphs = dict.fromkeys(topics[name].split("\n\n"))
        kept[name] = "\n\n".join(each for each in paragraphs if each not in seen)
        seen |= paragraphs.keys()
    return [[name, kept[name]] for name in sorted(kept) if kept[name]]


def main() -> None:
    for name, records in (
        ("breast-cancer", breast_cancer()),
        ("diabetes", diabetes()),
        ("python-topics", python_topics()),
    ):
        print(write(name, records))


if __name__ == "__main__":
    main()
