"""Imports point one way, by folder: experiments -> fl_app -> client_apps -> strategies.

Inside `strategies` they point down, too: what talks to Flower (GLUE) stands on what touches this
machine (MACHINE: files, processes, connections), and both on the mathematics, which is all the
rest.
"""

import ast
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("strategies", "client_apps", "fl_app", "experiments")  # from the ground up

# Modules of `strategies`; "package.*" is all that is in it.
GLUE = {
    "strategies.best",
    "strategies.checks",
    "strategies.consensus.answers",
    "strategies.consensus.fleet",
    "strategies.consensus.strategy",
    "strategies.contracts.rules",
    "strategies.dispatch",
    "strategies.distillation.evaluations",
    "strategies.distillation.handout",
    "strategies.distillation.outcomes",
    "strategies.distillation.publisher",
    "strategies.distillation.references",
    "strategies.distillation.strategy",
    "strategies.divergence",
    "strategies.grids",
    "strategies.link.invitations",
    "strategies.link.records",
    "strategies.link.sessions",
    "strategies.link.under_way",
    "strategies.messages.codec",
    "strategies.messages.training",
    "strategies.own_course",
    "strategies.roster",
    "strategies.secure_rounds",
}
MACHINE = {
    "strategies.checkpoint",
    "strategies.child",
    "strategies.condition",
    "strategies.carriers.sockets",
    "strategies.carriers.zenoh",
    "strategies.consensus.own",
    "strategies.consensus.settings",
    "strategies.consensus.shared",
    "strategies.contracts.*",
    "strategies.distillation.calibration",
    "strategies.distillation.child",
    "strategies.distillation.course",
    "strategies.distillation.learner",
    "strategies.distillation.mailbox",
    "strategies.distillation.recorded",
    "strategies.distillation.reference_worker",
    "strategies.distillation.server_state",
    "strategies.distillation.settings",
    "strategies.distillation.student",
    "strategies.distillation.supervisor",
    "strategies.distillation.teacher",
    "strategies.distillation.worker",
    "strategies.evaluation",
    "strategies.fingerprint",
    "strategies.link.*",
    "strategies.hf_partition",
    "strategies.memory",
    "strategies.own_rules",
    "strategies.partition",
    "strategies.paths",
    "strategies.pyproject",
    "strategies.plugins",
    "strategies.problem",
    "strategies.recorder",
    "strategies.rules",
    "strategies.task_reference",
    "strategies.site",
}
MOST_LINES = 415  # of a module: divide it where it has a seam
FLOWER = {"flwr", "ray"}
INPUT_OUTPUT = {"io", "multiprocessing", "os", "pathlib", "shutil", "socket", "subprocess"}


def height(module: str) -> float:
    """How high a module stands: the number of its folder, and inside of `strategies` a part."""
    folder = FOLDERS.index(module.split(".")[0])
    if folder:
        return folder
    if module in GLUE:
        return 0.5
    parts = module.split(".")
    names = {module} | {".".join(parts[:n]) + ".*" for n in range(1, len(parts) + 1)}
    return 0.25 if names & MACHINE else 0.0


def forbidden(module: str) -> set[str]:
    """What a module may not import from outside: Flower belongs to the glue, and mathematics does
    no input and output."""
    level = height(module)
    if level == 0.0:
        return FLOWER | INPUT_OUTPUT
    return FLOWER if level == 0.25 else set()


def imports_of(source: str, modules: Collection[str]) -> Iterator[str]:
    """What a source imports; `from package import module` counts as that module alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "a relative import"
                continue
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else str(node.module)


def violations(sources: Mapping[str, str], modules: Collection[str]) -> list[str]:
    """What is wrong with {module: source}, a sentence each; modules: all that there are."""
    wrong = []
    for module, source in sources.items():
        for imported in sorted(set(imports_of(source, modules))):
            top = imported.split(".")[0]
            if top in FOLDERS:
                if height(imported) > height(module):
                    wrong.append(f"{module} imports {imported}, which stands above it")
            elif top in forbidden(module) or imported == "a relative import":
                wrong.append(f"{module} may not import {imported}")
    return wrong


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    found = {}
    for package in FOLDERS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return found


def test_imports_only_point_down(modules: dict[str, str]) -> None:
    assert violations(modules, modules) == []


def test_no_import_cycles(modules: dict[str, str]) -> None:
    edges = (
        (module, imported)
        for module, source in modules.items()
        for imported in imports_of(source, modules)
        if imported in modules
    )
    assert list(nx.simple_cycles(nx.DiGraph(edges))) == []


def test_no_module_is_too_long_to_be_read_at_once(modules: dict[str, str]) -> None:
    lengths = {module: source.count("\n") for module, source in modules.items()}
    assert {module: n for module, n in lengths.items() if n > MOST_LINES} == {}


def test_the_tables_name_no_module_that_is_gone(modules: dict[str, str]) -> None:
    packages = {".".join(m.split(".")[:n]) + ".*" for m in modules for n in range(1, 5)}
    assert (GLUE | MACHINE) - set(modules) - packages == set()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("strategies.distillation.losses", "from fl_app.config import RunConfig"),
        ("strategies.distillation.strategy", "from fl_app.config import RunConfig"),
        ("strategies.rules", "from client_apps.local_model import local_model_of"),
        ("strategies.distillation.losses", "def f():\n    import flwr.app"),
        ("strategies.distillation.worker", "import flwr.app"),
        ("strategies.averaging", "from pathlib import Path"),
        ("strategies.averaging", "from strategies.paths import absolute"),
        ("strategies.paths", "from strategies.distillation import strategy"),
        ("client_apps.hello", "from fl_app import cli"),
        ("fl_app.cli", "import experiments.distillation"),
        ("fl_app.data.sets", "from . import images"),
        ("strategies.brand_new", "import os"),
    ],
)
def test_a_violation_is_found(module: str, source: str, modules: dict[str, str]) -> None:
    assert len(violations({module: source}, modules)) == 1
