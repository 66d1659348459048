"""The rules that keep the house in order: who may import whom, who owns which library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "lipsync_engine"

# Layers of the engine, lowest first; a module may import its own layer's value types and anything below.
LAYERS: list[set[str]] = [
    {"errors", "params", "progress", "cache", "cluster"},
    {"timeline", "frames", "align", "label", "audio", "speech"},
    {"media", "faces", "drawn_faces", "device", "weights", "safety", "composite", "credentials"},
    {"models"},
    {"detectors", "plan", "cast", "motion", "content", "work", "watermark"},
    {"portrait"},
    {"render", "score"},
    {"segments", "result"},
    {"pipeline"},
    {"batch"},
    {"cli"},
]

OWNERS = {
    "ffmpeg": {"media"},
    "imageio_ffmpeg": {"media"},
    "subprocess": {"media", "batch", "credentials"},  # FFmpeg; workers of a batch; the operator's signer
    "c2pa": {"credentials"},
    "cryptography": {"credentials"},
    "huggingface_hub": {"weights"},
    "whisper": {"audio", "speech", "models"},
    "diffusers": {"models"},
    "transformers": {"models"},
    "ray": {"cluster", "batch"},
    "typer": {"cli"},
    "rich": {"cli"},
}

PURE = {"params", "timeline", "frames", "align", "label"}
FORBIDDEN_IN_PURE = {"os", "io", "time", "datetime", "subprocess", "socket", "random", "shutil", "tempfile"}


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(ENGINE.rglob("*.py")):
        relative = path.relative_to(ENGINE)
        found.append((relative.parts[0].removesuffix(".py"), path))
    return [(name, path) for name, path in found if name != "__init__"]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def engine_parts(path: Path) -> set[str]:
    parts = {name.split(".")[1] for name in imports(path) if name.startswith("lipsync_engine.")}
    return parts & {name for layer in LAYERS for name in layer}


def layer_of(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: str(getattr(value, "name", value)))
def test_arrows_point_one_way(name: str, path: Path) -> None:
    for other in engine_parts(path) - {name}:
        assert layer_of(other) <= layer_of(name), f"{path.name} imports {other}, which stands above it"


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: str(getattr(value, "name", value)))
def test_outside_libraries_have_one_owner(name: str, path: Path) -> None:
    for library in {module.split(".")[0] for module in imports(path)} & set(OWNERS):
        assert name in OWNERS[library], f"{path.name} imports {library}, which belongs to {OWNERS[library]}"


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: str(getattr(value, "name", value)))
def test_the_engine_does_not_know_the_server(name: str, path: Path) -> None:
    roots = {module.split(".")[0] for module in imports(path)}
    assert not roots & {"server", "fastapi", "sqlalchemy"}
    if name in PURE:
        assert not roots & FORBIDDEN_IN_PURE, f"{path.name} is pure and does no I/O"


def test_model_families_do_not_know_each_other() -> None:
    families = {path.name for path in (ENGINE / "models").iterdir() if path.is_dir()}
    for family in families - {"__pycache__"}:
        for path in (ENGINE / "models" / family).rglob("*.py"):
            named = {m.split(".")[2] for m in imports(path) if m.startswith("lipsync_engine.models.")}
            assert not (named & families) - {family}


def test_importing_the_package_and_the_command_is_cheap() -> None:
    code = (
        "import sys, lipsync_engine, lipsync_engine.cli\n"
        "heavy = {'torch', 'cv2', 'diffusers', 'whisper', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_public_names_resolve() -> None:
    import lipsync_engine

    assert sorted(lipsync_engine.__all__) == lipsync_engine.__all__
    for name in lipsync_engine.__all__:
        assert getattr(lipsync_engine, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = lipsync_engine.no_such_name


def test_every_error_code_has_an_exit_status_of_its_own() -> None:
    from lipsync_engine.errors import EXIT_STATUS, ErrorCode

    assert set(EXIT_STATUS) == set(ErrorCode)
    assert len(set(EXIT_STATUS.values())) == len(EXIT_STATUS)


def test_every_module_is_described() -> None:
    text = (ROOT / "docs" / "structure.md").read_text()
    for name in {name for name, _ in modules()}:
        assert f"`{name}`" in text, f"docs/structure.md does not say what {name} is"
        assert name in {n for layer in LAYERS for n in layer}


# --- the server ---

SERVER = ROOT / "server"
SERVER_OWNERS = {
    "sqlalchemy": {"store", "audit", "migrations"},
    "alembic": {"store", "migrations"},
    "psycopg": {"store"},
    "obstore": {"blobs"},
    "httpx2": {"transport"},
    "torch": {"worker"},
    # lending is a part of the worker; the other two find a Ray cluster as the engine's batch does
    "lipsync_engine": {"worker", "lending", "ray_pool", "cluster"},
    "pydantic_settings": {"settings"},
    "prometheus_client": {"metrics"},
    "psutil": {"child"},
    "ray": {"ray_pool", "cluster"},  # cluster only looks whether it is there
    "pythonjsonlogger": {"logs"},
}
SERVER_PURE = {"jobs", "messages", "scaling"}


def server_modules() -> list[tuple[str, Path]]:
    paths = [path for path in sorted(SERVER.rglob("*.py")) if path.name != "__init__.py"]
    return [(path.relative_to(SERVER).parts[0].removesuffix(".py"), path) for path in paths]


@pytest.mark.parametrize(
    ("name", "path"), server_modules(), ids=lambda value: str(getattr(value, "name", value))
)
def test_the_servers_libraries_have_one_owner(name: str, path: Path) -> None:
    roots = {module.split(".")[0] for module in imports(path)}
    for library in roots & set(SERVER_OWNERS):
        assert name in SERVER_OWNERS[library], f"{path.name} imports {library}"
    if name in SERVER_PURE:
        assert not roots & FORBIDDEN_IN_PURE, f"{path.name} is pure and does no I/O"


def test_no_foreign_word_reaches_jobs_and_store() -> None:
    foreign = ("wavespeed", "studio", "native", "server.api")
    paths = [*(SERVER / "store").glob("*.py")]
    paths += [
        SERVER / f"{name}.py"
        for name in (
            "jobs",
            "board",
            "supervisor",
            "seat",
            "place",
            "sharing",
            "lending",
            "worker",
            "messages",
            "blobs",
            "auth",
            "webhooks",
            "site",
        )
    ]
    for path in paths:
        text = path.read_text().lower()
        assert not [word for word in foreign if word in text], path.name


def test_importing_the_application_is_cheap() -> None:
    code = (
        "import sys, server.app\n"
        "heavy = {'torch', 'cv2', 'diffusers', 'whisper', 'numpy', 'lipsync_engine'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_server_module_is_described() -> None:
    text = (ROOT / "docs" / "structure.md").read_text()
    for name in {name for name, _ in server_modules()} - {"migrations", "__main__"}:
        assert f"`{name}`" in text, f"docs/structure.md does not say what server/{name} is"
