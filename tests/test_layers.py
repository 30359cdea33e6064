"""Imports only point down. Every module has a layer; a new one must be given its own here."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fl_app", "strategies", "client_apps", "experiments")

# Modules by layer; "package.*" is the package and all that is in it.
LAYERS: dict[int, tuple[str, ...]] = {
    5: ("experiments.*",),
    4: (
        "fl_app.server_app",
        "fl_app.client_app",
        "fl_app.cli",
        "fl_app.task_commands",
        "fl_app.deploy.*",
        "fl_app.flower",
        "fl_app.launch.*",
        "fl_app.manage.*",
        "fl_app.new",
        "fl_app.watch.*",
    ),
    3: (
        "client_apps.*",
        "strategies.best",
        "strategies.checks",
        "strategies.consensus.answers",
        "strategies.consensus.exchange",
        "strategies.consensus.fleet",
        "strategies.consensus.ray_exchange",
        "strategies.consensus.strategy",
        "strategies.consensus.zenoh_exchange",
        "strategies.dispatch",
        "strategies.divergence",
        "strategies.evaluation",
        "strategies.grids",
        "strategies.library",
        "strategies.link.*",
        "strategies.own_course",
        "strategies.roster",
        "strategies.rules",
        "strategies.secure_rounds",
        "strategies.distillation.child",
        "strategies.distillation.learner",
        "strategies.distillation.mailbox",
        "strategies.distillation.publisher",
        "strategies.distillation.reference_worker",
        "strategies.distillation.references",
        "strategies.distillation.strategy",
        "strategies.distillation.student",
        "strategies.distillation.supervisor",
        "strategies.distillation.worker",
    ),
    2: (
        "fl_app",
        "fl_app.assemble",
        "fl_app.condition",
        "fl_app.config",
        "fl_app.data.*",
        "fl_app.effects",
        "fl_app.errors",
        "fl_app.fingerprint",
        "fl_app.keys",
        "fl_app.memory",
        "fl_app.models.*",
        "fl_app.paths",
        "fl_app.provenance",
        "fl_app.pyproject",
        "fl_app.record.*",
        "fl_app.site",
        "fl_app.streams",
        "fl_app.tasks.*",
    ),
    1: (
        "strategies",
        "strategies.attacks",
        "strategies.averaging",
        "strategies.clock",
        "strategies.consensus.*",
        "strategies.machines",
        "strategies.optimisers",
        "strategies.precision",
        "strategies.privacy",
        "strategies.randomness",
        "strategies.recorded",
        "strategies.rounds",
        "strategies.schedule",
        "strategies.secure",
        "strategies.task",
        "strategies.distillation",
        "strategies.distillation.growth",
        "strategies.distillation.losses",
    ),
}
# What a layer may not import from outside: Flower belongs to the glue, and mathematics does no I/O.
FLOWER = {"flwr", "ray"}
INPUT_OUTPUT = {"io", "multiprocessing", "os", "pathlib", "shutil", "socket", "subprocess"}
FORBIDDEN = {1: FLOWER | INPUT_OUTPUT, 2: FLOWER}


def layer_of(module: str) -> int | None:
    """The layer of a module, by its own name or that of a package it is in."""
    parts = module.split(".")
    names = {module} | {".".join(parts[:n]) + ".*" for n in range(1, len(parts) + 1)}
    return next((layer for layer, known in LAYERS.items() if names & set(known)), None)


def imports_of(source: str, modules: Mapping[str, str]) -> Iterator[str]:
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


def violations(modules: Mapping[str, str]) -> list[str]:
    """What is wrong with {module: source}, a sentence each."""
    wrong = []
    for module, source in modules.items():
        layer = layer_of(module)
        if layer is None:
            wrong.append(f"{module} has no layer: add it to LAYERS in tests/test_layers.py")
            continue
        for imported in sorted(set(imports_of(source, modules))):
            top = imported.split(".")[0]
            if top in PACKAGES:
                below = layer_of(imported)
                if below is None or below > layer:
                    wrong.append(f"{module} (layer {layer}) imports {imported} (layer {below})")
            elif top in FORBIDDEN.get(layer, ()) or imported == "a relative import":
                wrong.append(f"{module} (layer {layer}) may not import {imported}")
    return wrong


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return found


def test_imports_only_point_down(modules: dict[str, str]) -> None:
    assert violations(modules) == []


def test_no_import_cycles(modules: dict[str, str]) -> None:
    edges = (
        (module, imported)
        for module, source in modules.items()
        for imported in imports_of(source, modules)
        if imported in modules
    )
    assert list(nx.simple_cycles(nx.DiGraph(edges))) == []


def test_the_table_names_no_module_that_is_gone(modules: dict[str, str]) -> None:
    packages = {".".join(m.split(".")[:n]) + ".*" for m in modules for n in range(1, 5)}
    named = {name for names in LAYERS.values() for name in names}
    assert named - set(modules) - packages == set()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("strategies.distillation.losses", "from fl_app.config import RunConfig"),
        ("strategies.distillation.losses", "def f():\n    import flwr.app"),
        ("strategies.averaging", "from pathlib import Path"),
        ("fl_app.data.sets", "from flwr.app import Context"),
        ("fl_app.config", "from strategies.distillation import strategy"),
        ("client_apps.hello", "from fl_app import cli"),
        ("fl_app.cli", "import experiments.distillation"),
        ("fl_app.data.sets", "from . import images"),
        ("strategies.brand_new", ""),
    ],
)
def test_a_violation_is_found(module: str, source: str, modules: dict[str, str]) -> None:
    assert len(violations({**modules, module: source})) == 1
