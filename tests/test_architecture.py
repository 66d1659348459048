"""Architecture rules: which package may import which, and which package owns which library.

Every test checks one rule over all modules and lists all violations.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.paths import ROOT

ENGINE_LAYERS: list[set[str]] = [
    {"errors", "utils"},
    {"params", "progress", "ray_connection"},
    {"device", "weights", "media"},
    {"audio"},
    {"faces"},
    {"models"},
    {"planning"},
    {"provenance", "sync_score", "portrait"},
    {"rendering", "result", "face_report"},
    {"pipeline"},
    {"batch"},
    {"cli"},
]
"""Packages and modules of the engine, lowest first; a package imports only packages of lower layers."""

SERVER_LAYERS: list[set[str]] = [
    {"hosts"},
    {"settings"},
    {"audit_sink", "logs", "storage"},
    {"store"},
    {"jobs"},
    {"cluster.autoscaling"},
    {"workers"},
    {"metrics"},
    {"api"},
    {"app", "start"},
    {"cluster"},
    {"cli", "__main__"},
]
"""The same for the server. `jobs.state` and `jobs.request` are pure values, so `store` may import them."""

OWNERS = {
    # engine
    "ffmpeg": {"lipsync_engine.media"},
    "imageio_ffmpeg": {"lipsync_engine.media"},
    "c2pa": {"lipsync_engine.provenance"},
    "cryptography": {"lipsync_engine.provenance"},
    "huggingface_hub": {"lipsync_engine.weights"},
    "whisper": {"lipsync_engine.audio", "lipsync_engine.models"},
    "diffusers": {"lipsync_engine.models"},
    "transformers": {"lipsync_engine.models"},
    "typer": {"lipsync_engine.cli"},
    "rich": {"lipsync_engine.cli"},
    # server
    "sqlalchemy": {"server.store"},
    "alembic": {"server.store"},
    "psycopg": {"server.store"},
    "obstore": {"server.storage.blobs"},
    "httpx2": {"server.storage.transport", "lipsync_engine.weights"},
    "pydantic_settings": {"server.settings"},
    "prometheus_client": {"server.metrics"},
    "psutil": {"server.workers"},
    "pythonjsonlogger": {"server.logs"},
    "torch": {"server.workers.main", "lipsync_engine"},
    "fastapi": {"server.api", "server.app"},
    "starlette": {"server.api", "server.app", "server.metrics"},
    "subprocess": {
        "lipsync_engine.media",  # FFmpeg
        "lipsync_engine.batch",  # workers
        "lipsync_engine.provenance",  # the operator's signer
        "server.workers.process",  # workers
        "server.start",  # the check of the workers
        "server.cli.cluster",  # Ray's own command
    },
    "ray": {
        "lipsync_engine.ray_connection",
        "lipsync_engine.batch.ray_backend",
        "server.cluster.ray",
        "server.cli.cluster",  # only checks whether it is installed
    },
    "lipsync_engine": {
        "lipsync_engine",
        "server.workers.check",
        "server.workers.main",
        "server.workers.segment_client",
        "server.cluster.ray",
        "server.cli.cluster",
    },
    "server": {"server"},
}
"""Library: modules or packages that may import it."""

PURE = {
    "lipsync_engine.params",
    "lipsync_engine.planning.timeline",
    "lipsync_engine.media.rates",
    "lipsync_engine.media.yuv",
    "lipsync_engine.faces.align",
    "lipsync_engine.provenance.label",
    "server.jobs.state",
    "server.jobs.request",
    "server.workers.messages",
    "server.cluster.autoscaling",
}
FORBIDDEN_IN_PURE = {"os", "io", "time", "datetime", "subprocess", "socket", "random", "shutil", "tempfile"}

VENDOR_WORDS = ("wavespeed", "studio", "server.api")
VENDOR_FREE = ("server.jobs", "server.store", "server.storage", "server.workers")


def all_modules() -> dict[str, Path]:
    """Every module of both packages by its dotted name; a package stands for its `__init__`."""
    modules = {}
    for package in ("lipsync_engine", "server"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = all_modules()


def imported_names(path: Path, *, at_run_time: bool = False) -> set[str]:
    """Dotted names that a file imports, `from a import b` as `a.b`.

    Args:
        at_run_time: leave out what is imported for type checkers only.
    """
    tree = ast.parse(path.read_text())
    skipped = set()
    if at_run_time:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
                skipped |= set(map(id, ast.walk(node)))
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(path: Path, *, at_run_time: bool = False) -> set[str]:
    """Modules of this project that a file imports."""
    names = imported_names(path, at_run_time=at_run_time)
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} & set(MODULES)


def is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer_of(module: str, root: str, layers: list[set[str]]) -> int:
    """Index of the layer whose longest name contains the module."""
    candidates = [
        (len(name), index)
        for index, layer in enumerate(layers)
        for name in layer
        if is_inside(module, f"{root}.{name}")
    ]
    assert candidates, f"{module} belongs to no layer: add it to the list above"
    return max(candidates)[1]


@pytest.mark.parametrize(
    ("root", "layers"),
    [("lipsync_engine", ENGINE_LAYERS), ("server", SERVER_LAYERS)],
    ids=["lipsync_engine", "server"],
)
def test_packages_import_only_lower_layers(root: str, layers: list[set[str]]) -> None:
    violations = []
    for module, path in MODULES.items():
        if not module.startswith(f"{root}."):
            continue
        for other in imported_modules(path):
            if not other.startswith(f"{root}.") or module.split(".")[1] == other.split(".")[1]:
                continue
            if module.startswith("server.store") and other in PURE:
                continue
            if layer_of(other, root, layers) >= layer_of(module, root, layers):
                violations.append(f"{module} imports {other}")
    assert not violations, "\n".join(violations)


def test_no_import_cycles() -> None:
    graph = {module: imported_modules(path, at_run_time=True) - {module} for module, path in MODULES.items()}
    # An `__init__` that re-exports its own modules is no cycle: they do not import it.
    finished: set[str] = set()
    cycles: list[str] = []

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            cycles.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in finished:
            for other in sorted(graph[module]):
                visit(other, [*trail, module])
            finished.add(module)

    for module in graph:
        visit(module, [])
    assert not cycles, "\n".join(cycles)


def test_libraries_have_one_owner() -> None:
    violations = []
    for module, path in MODULES.items():
        for library in {name.split(".")[0] for name in imported_names(path)} & set(OWNERS):
            if not any(is_inside(module, owner) for owner in OWNERS[library]):
                violations.append(f"{module} imports {library}, which belongs to {sorted(OWNERS[library])}")
    assert not violations, "\n".join(violations)


def test_pure_modules_do_no_io() -> None:
    assert set(MODULES) >= PURE
    violations = [
        f"{module} imports {library}"
        for module in sorted(PURE)
        for library in {name.split(".")[0] for name in imported_names(MODULES[module])} & FORBIDDEN_IN_PURE
    ]
    assert not violations, "\n".join(violations)


def test_model_families_do_not_import_each_other() -> None:
    families = {path.name for path in (ROOT / "lipsync_engine" / "models").iterdir() if path.is_dir()}
    violations = []
    for family in families - {"__pycache__"}:
        package = f"lipsync_engine.models.{family}"
        for module, path in MODULES.items():
            if is_inside(module, package):
                others = {f"lipsync_engine.models.{name}" for name in families - {family}}
                violations += [
                    f"{module} imports {other}"
                    for other in imported_modules(path)
                    if any(is_inside(other, name) for name in others)
                ]
    assert not violations, "\n".join(violations)


def test_jobs_store_and_workers_name_no_vendor() -> None:
    violations = [
        f"{module} contains {word!r}"
        for module, path in MODULES.items()
        if module.startswith(VENDOR_FREE)
        for word in VENDOR_WORDS
        if word in path.read_text().lower()
    ]
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    ("imports", "heavy"),
    [
        ("lipsync_engine, lipsync_engine.cli", {"torch", "cv2", "diffusers", "whisper", "transformers"}),
        ("server.app", {"torch", "cv2", "diffusers", "whisper", "numpy", "lipsync_engine"}),
    ],
    ids=["lipsync_engine", "server"],
)
def test_import_loads_no_heavy_library(imports: str, heavy: set[str]) -> None:
    code = f"import sys, {imports}\nloaded = {heavy!r} & set(sys.modules)\nassert not loaded, loaded\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_package_is_installed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES.values()}
    assert listed - {"lipsync_engine.bundled_weights", "server.playground"} == folders


def test_public_names_resolve() -> None:
    import lipsync_engine

    assert sorted(lipsync_engine.__all__) == lipsync_engine.__all__
    for name in lipsync_engine.__all__:
        assert getattr(lipsync_engine, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = lipsync_engine.no_such_name


def test_error_codes_have_distinct_exit_statuses() -> None:
    from lipsync_engine.errors import EXIT_STATUS, ErrorCode

    assert set(EXIT_STATUS) == set(ErrorCode)
    assert len(set(EXIT_STATUS.values())) == len(EXIT_STATUS)


def test_every_package_is_described_in_structure_md() -> None:
    text = (ROOT / "docs" / "structure.md").read_text()
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    missing = [
        package
        for package in sorted(packages)
        if package.count(".") == 1 and f"`{package.split('.')[1]}`" not in text
    ]
    assert not missing, "docs/structure.md does not describe: " + ", ".join(missing)
