"""Tables: what of a CSV file a model is given, and the task that predicts one of its columns."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.cli import main
from fl_app.config import resolve
from fl_app.data.table import EMBEDDED, Encoding, Table, embedded, read_csv
from fl_app.preflight import preflight
from fl_app.problem import problem_of
from fl_app.record.metrics import latest, of_kind
from fl_app.record.report import render
from fl_app.tasks.tables import Tables
from fl_app.trial import try_out
from strategies.errors import EdgeFlError
from strategies.evaluation import measured
from strategies.flat import FlatModel
from strategies.problem import split_of, task_of
from tests import harness, test_consensus
from tests.test_tasks import NODES, TINY

PEOPLE = "age,city,height\n20,Ome,1.5\n40,Ina,2.5\n,Ome,2.0\n60,?,1.0\n"


def table(text: str, folder: Path, name: str = "own.csv") -> Table:
    return read_csv(written(text, folder, name))


def written(text: str, folder: Path, name: str = "own.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def of(path: Path | str = "", **more: Any) -> Tables:
    made = task_of(problem_of(resolve({"task": "tables", "data-path": str(path), **more})))
    assert isinstance(made, Tables)
    return made


def test_numbers_are_standardised_words_are_places_and_what_is_empty_says_nothing(
    tmp_path: Path,
) -> None:
    people = table(PEOPLE, tmp_path)
    encoding = Encoding.of(people, people)
    spread = np.std([20, 40, 60])
    np.testing.assert_allclose(
        encoding.inputs(people),
        [[-20 / spread, 0, 1], [0, 1, 0], [0, 0, 1], [20 / spread, 0, 0]],
        rtol=1e-6,
    )
    height = np.array([1.5, 2.5, 2.0, 1.0])
    scaled = encoding.targets(people)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[:, 0], (height - 1.75) / height.std(), rtol=1e-6)
    of_city = Encoding.of(people.take([0, 1, 2]), people.take([]), target="city")
    assert of_city.classes == ("Ina", "Ome")
    assert of_city.targets(people.take([0, 1, 2])).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        (["2", "10", "2"], ("2", "10")),
        (["no", "yes", "no"], ("no", "yes")),
        (["1.5", "2", "3"], ()),
        ([str(k) for k in range(30)], ()),
    ],
)
def test_words_and_few_whole_numbers_are_classes(
    target: list[str], classes: tuple[str, ...]
) -> None:
    rows = Table("it", ("x", "y"), tuple(("0", value) for value in target))
    nothing = Table("it", ("x", "y"), ())
    assert Encoding.of(rows, nothing).classes == classes
    if classes == ("2", "10"):
        assert Encoding.of(rows, nothing, kind="numbers").classes == ()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_cells_are_parted_by_commas_semicolons_or_tabs(delimiter: str, tmp_path: Path) -> None:
    read = table(PEOPLE.replace(",", delimiter), tmp_path)
    assert read.names == ("age", "city", "height")
    assert read.rows[1] == ("40", "Ina", "2.5")


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("a;b\n0,5;x\n-1,25;y\n;x\n", ["0.5", "-1.25", ""]),
        ("a\tb\n0,5\tx\n1\ty\n", ["0.5", "1"]),
        ("a;b\n0,5;x\n5%;y\n", ["0,5", "5%"]),  # words
        ("a;b\n1,005;x\n999.5;y\n", ["1,005", "999.5"]),  # it parts thousands
        ('a,b\n"0,5",x\n1,y\n', ["0,5", "1"]),
    ],
)
def test_a_decimal_comma_is_one_where_cells_are_not_parted_by_commas(
    text: str, first: list[str], tmp_path: Path
) -> None:
    assert table(text, tmp_path).column("a") == first


def test_a_trial_says_what_the_columns_are_taken_for(tmp_path: Path) -> None:
    rows = "".join(f"{k}%,{k % 3},{k / 7}\n" for k in range(60))
    path = str(written(f"share,kind,price\n{rows}", tmp_path))
    lines = try_out({"task": "tables", "data-path": path})
    said = [next(lines) for _ in range(4)][2:]
    assert said == [
        "columns of words, and how many: share (48)",
        "target: price, a number",
    ]
    lines = try_out({"task": "tables", "data-path": path, "table-target": "kind"})
    assert [next(lines) for _ in range(4)][3] == "target: kind, 3 classes: 0, 1, 2"


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [
        ("", {}, "has no rows"),
        ("a,b\n", {}, "has no rows"),
        ("a\n1\n2\n", {}, "a name for each column, two at least"),
        ("a,a\n1,2\n", {}, "no name twice"),
        ("a,b\n1,2\n3\n", {}, "row 3 has 1 cells, and there are 2 columns"),
        ('a,b\n1,"2\n', {}, "is no CSV file"),
        (PEOPLE, {"table-target": "weight"}, "has no column 'weight'; it has age, city, height"),
        (
            PEOPLE,
            {"table-target": "age"},
            "column 'age' is to be predicted, and is empty in 1 row(s)",
        ),
        (
            PEOPLE.replace("?", "Ome"),
            {"table-target": "city", "table-kind": "numbers"},
            "column 'city' has words",
        ),
        ("a,b\n" + "1,x\n" * 9, {}, "column 'b' has 1 classes"),
        (
            "a,b\n" + "".join(f"w{k},{k}\n" for k in range(200)),
            {},
            "different words, such as 'w0', and 100 are the most; leave it out",
        ),
    ],
)
def test_what_is_no_table_is_refused_in_a_line(
    text: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = written(text, tmp_path)
    with pytest.raises(EdgeFlError, match=re.escape(message)) as raised:
        preflight(resolve({"task": "tables", "data-path": str(path), **values}))
    assert "\n" not in str(raised.value)


def test_no_file_and_no_utf8_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeFlError, match="cannot be read"):
        read_csv(tmp_path / "absent.csv")
    (tmp_path / "own.csv").write_bytes(b"a,b\n\xff,1\n")
    with pytest.raises(EdgeFlError, match="no text in UTF-8"):
        read_csv(tmp_path / "own.csv")


def test_a_fifth_of_the_rows_is_for_the_test_or_a_file_of_its_own(tmp_path: Path) -> None:
    path = written("x,y\n" + "".join(f"{k},{k / 2}\n" for k in range(50)), tmp_path)
    task, again = of(path), of(path, seed=1)
    assert (len(task.train_set), len(task.test_set)) == (40, 10)
    assert task.digest == again.digest  # whatever the seed, results are of the same test set
    # Scaled by what is trained with, and not by what is tested.
    assert abs(float(task.train_set.inputs.mean())) < 1e-6 < abs(float(task.test_set.inputs.mean()))
    written("x,y\n1,2.5\n2,3.5\n", tmp_path, "train.csv")
    written("y,x\n7.5,1\n", tmp_path, "test.csv")
    apart = of(tmp_path)
    assert (len(apart.train_set), len(apart.test_set)) == (2, 1)
    assert float(apart.test_set.inputs) == float(apart.train_set.inputs[0]) == -1


def test_a_devices_own_rows_are_scaled_like_those_of_the_run(tmp_path: Path) -> None:
    """And its columns may stand in another order, with others between them."""
    written(PEOPLE.replace("?", "Ina"), tmp_path, "train.csv")
    written(PEOPLE, tmp_path, "test.csv")
    task = of(tmp_path)
    assert task.own_by_training
    own = task.own(str(written("city,height,shoe,age\nOme,1.5,43,20\n", tmp_path)))
    assert torch.equal(own.inputs, task.train_set.inputs[:1])
    assert torch.equal(own.targets, task.train_set.targets[:1])
    with pytest.raises(EdgeFlError, match="has no column 'city'"):
        task.own(str(written("age,height\n20,1.5\n", tmp_path)))
    with pytest.raises(EdgeFlError, match="'old' in column 'age' is no number"):
        task.own(str(written("age,city,height\nold,Ome,1\n", tmp_path)))
    with pytest.raises(EdgeFlError, match="column 'height' is to be predicted, and is empty in 1"):
        task.own(str(written("age,city,height\n20,Ome,\n30,Ome,1\n", tmp_path)))
    task = of(written(PEOPLE.replace("?", "Ina"), tmp_path), **{"table-target": "city"})
    with pytest.raises(EdgeFlError, match="'Nara' in column 'city' is none of the classes Ina"):
        task.own(str(written("age,city,height\n1,Nara,1\n", tmp_path, "device.csv")))


def test_errors_of_numbers_are_in_their_own_unit() -> None:
    """Who always says the mean is off by the spread."""
    task = of(table="diabetes")
    assert [metric.name for metric in task.metrics] == ["rmse", "mae"]
    assert not task.metric.higher_is_better
    model = FlatModel(task.model("small"))
    model.weights.zero_()
    found = measured(task, model, task.train_set).values
    values = np.array([float(row[-1]) for row in embedded("diabetes").rows])
    assert found["rmse"] == pytest.approx(values.std(), rel=0.05)
    assert found["mae"] == pytest.approx(np.abs(values - values.mean()).mean(), rel=0.05)
    assert found["loss"] == pytest.approx(1)


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("partition", ["iid", "dirichlet", "halves", "shards"])
def test_embedded_tables_can_be_divided_unequally(name: str, partition: str) -> None:
    config = resolve({"task": "tables", "table": name, "partition": partition, "alpha": 1.0})
    task, parts = task_of(problem_of(config)), split_of(problem_of(config)).participants
    groups = task.groups(task.train_set)
    assert groups is not None
    assert len(np.unique(groups)) == (len(task.classes) or 10)
    if partition == "halves":
        assert not set(groups[parts[0]]) & set(groups[parts[1]])


def test_the_published_model_predicts_a_number(tmp_path: Path) -> None:
    """Targets are reached from above, and the report names the error."""
    config = {"task": "tables", "table": "diabetes", "targets": "150,1"}
    summary, run = harness.run(tmp_path, config, TINY)
    assert summary["status"] == "completed"
    assert 30 < summary["final"]["published"] < 150
    reached = summary["time_to_target"]
    assert reached["150.00"] is not None
    assert reached["1.00"] is None
    metric = latest(run.events(), "run_started")["metric"]
    assert metric == {"name": "rmse", "unit": "", "direction": "lower"}
    assert "final rmse" in render(run).read_text()


def test_nodes_agree_on_a_regression(tmp_path: Path) -> None:
    config = {"task": "tables", "table": "diabetes", "partition": "halves"}
    run = test_consensus.run(tmp_path, {**NODES, **config})
    nodes, average = (of_kind(run.events(), kind)[-1] for kind in ("nodes", "evaluate"))
    assert all(30 < error < 200 for error in nodes["accuracy"])
    assert average["rmse"] == average["accuracy"]
    assert math.isfinite(average["mae"])


def test_who_has_which_tenth_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(tmp_path / "parts.png")
    words = ["data", "show", "task=tables", "table=diabetes", "partition=halves", "--out", picture]
    assert main(words) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r"participant 0: \d+ examples; per class \[.*(, 0){5}\]", first)
    assert Path(picture).stat().st_size > 1000
