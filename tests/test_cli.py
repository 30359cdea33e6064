"""The `edge-fl` command: every subcommand on a small run directory, and its errors."""

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.cli import main
from fl_app.config import defaults, resolve
from fl_app.launch import run as launch
from fl_app.problem import problem_of
from fl_app.record.export import load
from fl_app.record.find import find_run, find_runs
from fl_app.record.run_dir import RunDirectory
from strategies import pyproject
from strategies.consensus.topologies import TOPOLOGIES
from strategies.errors import EdgeFlError, RunDirectoryError
from strategies.problem import flat_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """EDGE_FL_HOME/runs with two runs, one of them with a final model."""
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    config = resolve({"participants": 2, "distill.variant": "sync"})
    for name in ("sync-1", "sync-12"):
        run = RunDirectory.create(root, config.flat(), name=name)
        run.emit("round", round=1, t=1.0, staleness=0.0, contributions=2, rejected=0, lost=0)
        run.emit("evaluate", round=1, t=1.0, model="global", accuracy=0.5, loss=1.0, step=3)
        run.close()
    run.save_checkpoint("global", flat_model(problem_of(config), "large").state())
    run.write_summary({"status": "completed", "final": {"published": 0.5}})
    return root


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from fl_app.cli import parser; parser().format_help(); print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    heavy = {"torch", "flwr", "numpy", "ray", "matplotlib", "cryptography", "zenoh"}
    assert heavy & set(output.split()) == set()


def test_config_prints_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    section, keys = "", set()
    for line in lines:
        if line.startswith("config"):
            section = line.split(":")[0].removeprefix("config").lstrip(".")
        elif "=" in line.partition("#")[0]:
            keys.add(f"{section}.{line.split()[0]}".lstrip("."))
    assert keys == set(defaults())


def test_runs_lists_them_with_their_state(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["sync-1", "not", "finished"] in rows
    assert ["sync-12", "completed", "accuracy", "50.0", "%"] in rows


def test_no_runs_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGE_FL_HOME", str(tmp_path))
    assert main(["runs"]) == 0
    assert f"no runs in {tmp_path}/runs yet" in capsys.readouterr().err


def test_a_run_is_found_by_path_name_or_beginning(runs: Path) -> None:
    assert find_run(str(runs / "sync-1")).name == "sync-1"
    assert find_run("sync-1").name == "sync-1"  # though sync-12 begins with it too
    assert find_run("sync-12").path == runs / "sync-12"
    with pytest.raises(RunDirectoryError, match="2 runs begin with 'sync'"):
        find_run("sync")
    with pytest.raises(RunDirectoryError, match="no run 'other'"):
        find_run("other")


def test_a_folder_that_is_no_run_hides_none(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the one that a sweep makes for its comparison."""
    monkeypatch.chdir(tmp_path)
    for name in ("sync", "sync-1", "nothing"):
        (tmp_path / name).mkdir()
    assert find_run("sync-1").path == runs / "sync-1"
    assert {run.name for run in find_runs("sync")} == {"sync-1", "sync-12"}
    with pytest.raises(RunDirectoryError, match="2 runs begin with 'sync'"):
        find_run("sync")
    for name in ("nothing", "./sync"):
        with pytest.raises(RunDirectoryError, match=f"{Path(name).name} is not a run directory"):
            find_run(name)


def test_report_draws_the_run_again(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "sync-12"]) == 0
    assert capsys.readouterr().out.strip() == str(runs / "sync-12" / "report.html")
    assert (runs / "sync-12" / "figures" / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_compare_writes_where_it_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "sync-1", "sync-12", "--out", "both"]) == 0
    output = capsys.readouterr().out
    assert "sync-1 " in output
    assert "sync-12 " in output
    assert sorted(path.name for path in (runs.parent / "both").iterdir()) == [
        "compare.csv",
        "compare.md",
        "compare.png",
    ]


def test_resume_takes_the_configuration_of_the_run(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(launch, "run", lambda values, **options: calls.append(values) or 0)
    assert main(["resume", "sync-1"]) == 0
    (values,) = calls
    assert values == json.loads((runs / "sync-1" / "config.json").read_text()) | {
        "resume": str(runs / "sync-1")
    }
    assert resolve(values).participants == 2


def test_run_passes_on_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        launch, "run", lambda values, screen, **options: calls.append((values, options)) or 7
    )
    assert main(["run", "participants=5", "--superlink", "edge", "seed=3", "--verbose"]) == 7
    assert calls == [
        ({"participants": 5, "seed": 3}, {"superlink": "edge", "ray": "", "verbose": True})
    ]


@pytest.mark.parametrize("words", [["run", "--fast"], ["models", "seed=1"], ["fly"], []])
def test_what_is_no_command_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(words)
    assert refusal.value.code == 2


def test_data_show_counts_and_draws(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", "participants=4", "partition=halves", "--out", "h.png"]) == 0
    *rows, path = capsys.readouterr().out.splitlines()
    counts = [json.loads(row.split("per class ")[1]) for row in rows]
    assert len(counts) == 4
    assert all(row.split()[2] == str(sum(count)) for row, count in zip(rows, counts, strict=True))
    # `halves`: nobody has a class of the other half.
    assert all(0 in count for count in counts)
    assert Path(path).read_bytes().startswith(b"\x89PNG")
    assert path == str(runs.parent / "h.png")


def test_data_check_accepts_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.zeros((6, 28, 28), np.uint8)
    np.savez(tmp_path / "shard.npz", images=images, labels=np.arange(6))
    assert main(["data", "check", str(tmp_path / "shard.npz")]) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("train: 6 images of 1x28x28")
    assert [int(row.split()[0]) for row in rows] == [1] * 6 + [0] * 4


def test_data_check_takes_a_whole_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 255, (6, 9, 9, 3), np.uint8)
    labels = np.arange(6) % 3
    np.savez(tmp_path / "all.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    for values in (["dataset=files"], []):
        assert main(["data", "check", str(tmp_path / "all.npz"), *values]) == 0
        assert capsys.readouterr().out.count("6 images of 3x9x9, fit dataset=files") == 2


def test_data_check_says_what_is_not_used_and_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 255, (6, 9, 9), np.uint8)
    labels = np.array([7, 31, 9000] * 2)
    whole = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "all.npz", allow_pickle=False, **whole, x_val=images)
    assert main(["data", "check", str(tmp_path / "all.npz")]) == 0
    *_, row, told = capsys.readouterr().out.splitlines()
    assert row.split() == ["2", "9000"]
    assert told == f"{tmp_path}/all.npz: 1 array(s) not used: x_val"

    whole["y_test"] = labels // 2
    np.savez(tmp_path / "other.npz", allow_pickle=False, **whole)
    assert main(["data", "check", str(tmp_path / "other.npz")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'7' (2 in train, 0 in test)" in line


def test_a_terminal_without_the_letters_gets_escapes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (4, 9, 9), np.uint8)
    whole = {"x_train": images, "y_train": [0, 1] * 2, "x_test": images, "y_test": [0, 1] * 2}
    names = np.array(["k\u00e4fer", "ant"])
    np.savez(tmp_path / "all.npz", allow_pickle=False, **whole, classes=names)
    output = subprocess.run(
        [sys.executable, "-m", "fl_app.cli", "data", "check", str(tmp_path / "all.npz")],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "2  k\\xe4fer" in output


def test_data_check_takes_a_devices_part_of_ones_own_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 255, (4, 9, 9), np.uint8)
    labels = np.array([1, 2] * 2)
    whole = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "all.npz", allow_pickle=False, **whole)
    np.savez(tmp_path / "shard.npz", images=images[:3], labels=labels[:3])
    words = [str(tmp_path / "shard.npz"), "dataset=files", f"data-path={tmp_path}/all.npz"]
    assert main(["data", "check", *words]) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split() for row in rows] == [["2", "1"], ["1", "2"]]


def test_export_writes_a_model_that_computes_the_same(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["export", "sync-12", "--onnx", "model.onnx"]) == 0
    assert "the global model; largest difference from torch" in capsys.readouterr().out
    path = str(runs.parent / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["edge-fl"])
    assert told == load(runs / "sync-12")[1]


def test_models_are_listed_with_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    small = resolve({"small-model": "cnn6", "dataset": "mnist"})
    assert rows["cnn6"][-1] == f"{flat_model(problem_of(small), 'small').weights.numel():,}"


def test_topology_describes_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["topology", "grid", "6", "--out", "grid.png"]) == 0
    *lines, path = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["nodes: 6; edges: 7; diameter: 3", "degree: min 2, mean 2.33, max 3"]
    assert path == str(tmp_path / "grid.png")
    assert Path(path).read_bytes().startswith(b"\x89PNG")


def test_topology_tells_the_rounds_of_a_time_varying_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["topology", "base-k", "6", "--degree", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "spectral gap: 1" in lines
    assert "rounds: 4, over and over, of 2, 2, 2, 3 edges" in lines


def test_topology_takes_a_seed_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = []
    for seed in ("0", "1", "0"):
        words = ["erdos-renyi", "20", "--probability", "0.3", "--seed", seed]
        assert main(["topology", *words]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[2] != outputs[1]
    Path("sites").write_text("Kyoto Osaka\nOsaka Nara\n")
    assert main(["topology", "file", "3", "--file", "sites"]) == 0
    assert "nodes: 3; edges: 2; diameter: 2" in capsys.readouterr().out


def test_the_help_names_every_topology(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["topology", "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(TOPOLOGIES) <= set(words)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run", "participants=many"], "participants"),
        (["run", "distill.varaint=sync"], "did you mean distill.variant"),
        (["run", "distill.variant=best"], "choose one of"),
        (["run", "participants=1000000"], "participants"),
        (["run", "output=/proc/none"], "/proc/none"),
        (["run", "data-root=/not/there", "dataset=cifar10"], "/not/there"),
        (["data", "check", "/not/there"], "/not/there"),
        (["data", "show", "--out", "/proc/none.png"], "/proc/none.png"),
        (["export", "sync-1", "--onnx", "x.onnx"], "global"),
        (["report", "nothing"], "nothing"),
        (["resume", "nothing"], "nothing"),
        (["topology", "rng", "8"], "choose one of"),
        (["topology", "hypercube", "9"], "take 8 or 16"),
        (["topology", "file", "8"], "--file"),
        (["topology", "ring", "8", "--file", "sites"], "--file"),
        (["topology", "file", "8", "--file", "/not/there"], "/not/there"),
        (["topology", "ring", "8", "--out", "/proc/none.png"], "/proc/none.png"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(
    words: list[str], complaint: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(runs.parent.rglob("*"))
    assert main(words) == 2
    output, errors = capsys.readouterr()
    assert errors.startswith("edge-fl: ")
    assert complaint in errors
    assert "Traceback" not in output + errors
    assert sorted(runs.parent.rglob("*")) == before


# ------------------------------------------------------------------ damaged run directories

EVENT = '{"event": "round", "t_wall": 1.0, "round": 1, "t": 1.0}\n'
DAMAGES = {
    "environment.json": ["", "[]", "7", "{", '{"started": 7}', "\0" * 99, "[" * 99_999],
    "summary.json": ["", "[]", '{"final": 3}', '{"final": {"published": "x"}}', "nonsense"],
    "config.json": ["", "[1]", '{"mode": []}', '{"mode": "other"}', "{}"],
    "metrics.jsonl": [
        "nonsense\n",
        "[]\n" + EVENT,
        '{"event": 3, "t_wall": 1}\n',
        '{"event": "finished", "t_wall": 1}\n',
        EVENT.replace("1,", "[],"),
        EVENT + '{"event": "resumed", "round": "x", "t_wall": 2.0}\n',
        "[" * 99_999 + "\n",
    ],
}
# After these a run is as good as before: what was lost had never been recorded, or is for people.
HARMLESS = [("environment.json", '{"started": 7}'), ("metrics.jsonl", EVENT + '{"event": "rou')]


@pytest.mark.parametrize(
    ("file", "text"), [(f, text) for f, texts in DAMAGES.items() for text in texts] + HARMLESS[1:]
)
def test_a_damaged_run_is_listed_with_what_is_wrong_and_harms_no_other(
    file: str,
    text: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def started(*_: object) -> None:
        raise EdgeFlError("everything was found to be well")

    monkeypatch.setattr(launch, "preflight", lambda _: None)
    monkeypatch.setattr(launch, "_link", started)
    RunDirectory.open(runs / "sync-1").write_summary({"status": "failed"})
    (runs / "sync-1" / file).write_text(text)
    assert main(["runs"]) == 0
    output = capsys.readouterr().out
    assert "sync-12  completed     accuracy 50.0 %" in output
    (row,) = (line for line in output.splitlines() if line.startswith("sync-1 "))
    if (file, text) in HARMLESS:
        assert row == "sync-1   failed"
    else:
        assert row.startswith("sync-1   damaged: ")
    assert find_run("sync-12").name == "sync-12"
    assert main(["compare", "sync-12", "--out", "both"]) == 0
    for command in ("report", "resume", "compare", "export"):
        words = {"export": ["--onnx", "x.onnx"]}.get(command, [])
        assert main([command, "sync-1", *words]) in (0, 1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_a_directory_that_may_not_be_read_harms_no_run(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "secret").mkdir()
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        if path.parent.name == "secret":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)  # root may read everything
    assert main(["runs"]) == 0
    output = capsys.readouterr().out
    assert f"secret   damaged: cannot read {runs}/secret: Permission denied" in output
    assert "sync-12  completed" in output
    assert find_run("sync-12").name == "sync-12"


# ------------------------------------------------------------------------ odd surroundings


def edge_fl(script: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`script` in a shell, in which E is the command."""
    program = "import edge_fl, sys; sys.exit(edge_fl.main())"
    command = f"{sys.executable} {options.pop('flags', '')} -c {shlex.quote(program)}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(
        ["bash", "-c", f'E() {{ {command} "$@"; }}; {script}', "-", *words],
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["config", "topology ring 9"])
def test_a_reader_that_is_gone_ends_a_command_quietly(
    words: str, unbuffered: str, tmp_path: Path
) -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    with open(pipe, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "fl_app.cli", *words.split()],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_output_that_is_full_is_an_error_without_a_traceback() -> None:
    done = edge_fl("E config > /dev/full")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "edge-fl: [Errno 28] No space left on device\n"


OPENS = """
import os, sys
from fl_app.streams import written_out
with written_out():
    print("to nobody")
    number = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
    os.write(number, str(number).encode())
"""


def test_closed_streams_are_no_files(tmp_path: Path) -> None:
    """What a library prints would be written to a file that got the number of such a stream."""
    command = f'{sys.executable} -c {shlex.quote(OPENS)} "$1" <&- >&- 2>&-'
    done = subprocess.run(["bash", "-c", command, "-", tmp_path / "file"], cwd=ROOT, check=False)
    assert done.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


def test_a_working_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = edge_fl("cd gone; rmdir ../gone; E topology ring 4", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "edge-fl: the working directory is gone; change to another one\n"


def test_a_home_that_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EDGE_FL_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(RunDirectoryError, match="home directory that cannot be found"):
        find_run("sync-1")


def test_commands_work_in_any_place_and_with_python_o(tmp_path: Path) -> None:
    home = tmp_path / "Läufe 走る 'x'"
    run = RunDirectory.create(home / "runs", resolve({}).flat(), name="größer & so")
    run.emit("evaluate", round=1, t=1.0, model="global", accuracy=0.5, loss=1.0, step=3)
    odd = {"EDGE_FL_HOME": str(home), "LC_ALL": "C", "PYTHONIOENCODING": ""}
    done = edge_fl("E runs && E report 'größer'", env=odd, flags="-O")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(run.path / "report.html")


def test_an_interrupted_command_says_no_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "run", interrupted)
    assert main(["run"]) == 130
    assert capsys.readouterr() == ("edge-fl: setting up ...\n", "")


@pytest.mark.parametrize("words", ["config", "run", "data show", "export sync-12 --onnx x"])
@pytest.mark.parametrize("others", [False, True])
def test_an_installation_without_its_defaults_says_so(
    words: str,
    others: bool,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pyproject, "PATH", runs / "pyproject.toml")
    if others:  # which some packages install beside all others
        (runs / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    defaults.cache_clear()
    try:
        assert main(words.split()) == 2
    finally:
        defaults.cache_clear()
    assert "install edge-fl again" in capsys.readouterr().err
