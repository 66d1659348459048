"""The documents do not rot: every endpoint, error code, model and link that they should name, they name."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from lipsync_engine.errors import ErrorCode
from server.api import wavespeed
from server.api.wavespeed_models import MODELS
from server.app import Server, create_app
from server.jobs import state as job_state
from server.jobs.admission import AdmissionCode
from server.settings import Settings
from server.storage.transport import TransportCode
from tests.support.paths import ROOT

DOCS = ROOT / "docs"


def rows(name: str) -> list[list[str]]:
    """Cells of all table rows of a document, without heads and rules."""
    lines = [line for line in (DOCS / name).read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if not row[0].startswith("---")]


def plain(path: str) -> str:
    """A path without the names of its parameters."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def test_every_endpoint_is_described_and_no_other(tmp_path: Path) -> None:
    server = Server(Settings(data_dir=tmp_path), devices=())
    paths = create_app(server).openapi()["paths"]
    server.jobs.close()
    server.store.close()
    real = {(method.upper(), plain(path)) for path, entry in paths.items() for method in entry}
    described = {
        (method, plain(path))
        for row in rows("http.md")
        for method, path in product(re.findall(r"[A-Z]{3,}", row[0]), re.findall(r"`(/[^`]*)`", row[1]))
    }
    assert real == described


def api_error_codes() -> set[str]:
    """Third arguments of every `ApiError` in the server."""
    found = set()
    for path in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "ApiError"
                and len(node.args) > 2
            ):
                slugs = [leaf.value for leaf in ast.walk(node.args[2]) if isinstance(leaf, ast.Constant)]
                found |= {slug for slug in slugs if isinstance(slug, str)}
    return found | {"unauthorized", "forbidden"}  # chosen by status


def test_every_error_code_has_its_line() -> None:
    kinds = (
        job_state.WORKER_LOST,
        job_state.STORAGE_UNAVAILABLE,
        job_state.WAIT_TIMEOUT,
        job_state.RUN_TIMEOUT,
        job_state.UNREADABLE,
    )
    own = {failure.code for failure in kinds}
    codes = {
        *map(str, ErrorCode),
        *map(str, TransportCode),
        *map(str, AdmissionCode),
        *own,
        *wavespeed.CODES,
        *api_error_codes(),
    }
    assert len(codes) > 50
    explained = [row[0].strip("`") for row in rows("troubleshooting.md") if re.fullmatch(r"`\w+`", row[0])]
    assert sorted(codes) == sorted(explained)


def test_every_model_has_its_line() -> None:
    described = {row[0].strip("`"): row for row in rows("models.md") if row[0].startswith("`")}
    manifest = tomllib.loads((ROOT / "weights" / "manifest.toml").read_text())["models"]
    assert set(described) == {*manifest, *MODELS}
    for name, entry in manifest.items():
        row = described[name]
        assert row[3:] == [entry["licence"], entry["commercial"]], name
        assert row[2] == str(entry.get("resolution", "")), name
    for name, model in MODELS.items():
        assert described[name][1] == ", ".join(role.value for role in model.schema.required), name


PAGES = sorted(
    page
    for folder in (".", "docs", "dev", "demo", "weights", "weights/*", "tests")
    for page in ROOT.glob(f"{folder}/*.md")
)


def anchors(page: Path) -> set[str]:
    """Fragments that the headings of a page can be linked by, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if target.startswith("http"):
                continue
            path, _, fragment = target.partition("#")
            file = page.parent / path if path else page
            if not file.exists() or (fragment and fragment not in anchors(file)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken, "\n".join(broken)


def test_named_files_and_modules_exist() -> None:
    missing = []
    for page in PAGES:
        if page.name == "log.md":  # dated notes, which are not updated
            continue
        text = page.read_text()
        paths = re.findall(r"\b(?:scripts|tests|benchmarks|deploy|demo)/[\w./]*\w", text)
        paths += [
            name.replace(".", "/") for name in re.findall(r"python -m ((?:scripts|tests|server)[\w.]*)", text)
        ]
        missing += [f"{page.relative_to(ROOT)}: {path}" for path in paths if not list(ROOT.glob(f"{path}*"))]
    assert not missing, "\n".join(missing)


def test_quoted_texts_are_on_the_page() -> None:
    texts = (ROOT / "server" / "playground" / "texts.js").read_text()
    for name in ("quickstart", "operations", "troubleshooting"):
        for quote in re.findall(r"\*([A-Z][^*\n]+)\*", (DOCS / f"{name}.md").read_text()):
            assert quote in texts, f"docs/{name}.md: {quote}"


def test_every_page_is_in_the_index() -> None:
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    index = set(re.findall(r"\]\((\w+\.md)\)", (DOCS / "README.md").read_text()))
    assert index == pages
    assert set(re.findall(r"\]\(docs/(\w+\.md)", (ROOT / "README.md").read_text())) == pages


def test_glossary_is_sorted_and_names_real_modules() -> None:
    text = (DOCS / "glossary.md").read_text()
    terms = re.findall(r"^- \*\*(.+?)\*\*", text, re.MULTILINE)
    assert terms == sorted(terms, key=str.lower)
    modules = set(re.findall(r"`((?:lipsync_engine|server)\.[\w.]+)`", text))
    assert len(modules) > 20
    files = {module: ROOT / module.replace(".", "/") for module in modules}
    missing = [
        name for name, file in files.items() if not (file.is_dir() or file.with_suffix(".py").exists())
    ]
    assert not missing


def test_structure_is_short_and_names_real_modules() -> None:
    text = (DOCS / "structure.md").read_text()
    assert len(text.split()) <= 900
    modules = set(re.findall(r"`(\w+(?:\.\w+)+)`", text)) - {"tests/test_architecture.py"}
    roots = (ROOT / "lipsync_engine", ROOT / "server")
    missing = [
        name
        for name in modules
        if not name.endswith(".py")
        and not any((root / name.replace(".", "/")).with_suffix(".py").exists() for root in roots)
    ]
    assert not missing


def test_newest_version_is_in_the_changelog() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", version]


def test_newest_commit_has_a_scope_and_a_short_subject() -> None:
    command = ["git", "-C", str(ROOT), "log", "-1", "--no-merges", "--format=%s"]
    log = subprocess.run(command, capture_output=True, text=True, check=False)
    if log.returncode != 0 or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    assert re.fullmatch(r"[a-z][\w/, -]*: .+", log.stdout.strip()), log.stdout
    assert len(log.stdout.strip()) <= 72, log.stdout


def test_pictures_are_small() -> None:
    sizes = [path.stat().st_size for path in (DOCS / "images").glob("*")]
    assert sizes
    assert max(sizes) < 200_000
    assert sum(sizes) < 1_000_000


def test_the_cluster_is_as_large_as_documented() -> None:
    size = json.loads((ROOT / "benchmarks" / "cluster_size.json").read_text())
    text = (ROOT / "docs" / "cluster.md").read_text()
    rows = {(row["storage_gbit_s"], row["workers"]): row for row in size["rows"]}
    for workers in (1, 16, 64, 250, 500, 1000):
        small, large = rows[10, workers], rows[40, workers]
        found = (
            small["share_of_linear"],
            small["storage"],
            *(large[k] for k in ("share_of_linear", "storage")),
        )
        cells = " | ".join(f"{value:.2f}" for value in (*found, large["database"]))
        assert f"| {workers} | {cells} |" in text
    for cost in size["measured"].values():
        if isinstance(cost, dict) and cost["client_ms"]:
            assert f" | {cost['database_ms']:.1f} | {cost['client_ms']:.1f} |" in text


# --- the language of names, messages and pages: CONTRIBUTING.md, "Names and prose" ---

BANNED_WORD = re.compile(
    r"said|told|heard|given|found|seen|wanted|asked|ears?|letters?|stumbled?|house", re.IGNORECASE
)
"""Not in an identifier: a variable names the thing, and programs neither speak nor listen."""
BANNED_IDENTIFIERS = {"_mouth", "MouthCheck", "MouthJudge"}
"""`mouth` is a word of this field, but not for writers, locks and checks."""
BANNED_IN_MESSAGES = re.compile(rf"\b({BANNED_WORD.pattern}|at hand)\b", re.IGNORECASE)
ALLOWED = {
    r"not_?found": "the term of HTTP, of Python and of error codes such as `face_not_found`",
    r"\bnot found\b": "the same in sentences; some are part of the vendors' contracts",
}
"""Pattern: why it is allowed. It is cut out before a name or message is checked."""

BANNED_IN_PAGES = re.compile(
    r"at hand|tells? each other|(is|are|was) told|(it is|are) worth|goes on where|has not been seen|"
    r"no words for|leaves? the house|(is|are) looked at|looks at|listens to|whoever|nobody (looks|asks|has)",
    re.IGNORECASE,
)
"""Phrases of the old prose; each has a plain term."""

LINTED = (
    "lipsync_engine.audio",
    "lipsync_engine.batch",
    "lipsync_engine.cli",
    "lipsync_engine.device",
    "lipsync_engine.errors",
    "lipsync_engine.face_report",
    "lipsync_engine.faces",
    "lipsync_engine.media",
    "lipsync_engine.models",
    "lipsync_engine.params",
    "lipsync_engine.pipeline",
    "lipsync_engine.planning",
    "lipsync_engine.portrait",
    "lipsync_engine.progress",
    "lipsync_engine.provenance",
    "lipsync_engine.ray_connection",
    "lipsync_engine.rendering",
    "lipsync_engine.result",
    "lipsync_engine.sync_score",
    "lipsync_engine.utils",
    "lipsync_engine.weights",
    "server.__main__",
    "server.api",
    "server.app",
    "server.cli",
    "server.cluster",
    "server.jobs",
    "server.logs",
    "server.metrics",
    "server.settings",
    "server.storage",
    "server.store",
    "server.workers",
)
"""Packages whose names, messages and docstrings are checked."""

LOWER_CASE_NAMES = ("bool (", "float32 (", "lipsync.studio", "uvicorn")
NO_VERB = re.compile(
    "an?|all|as|every|how|if|its?|of|one|th(at|e|is|ose)|wh(at|en|ere|ether|ich|o|oever|ose)", re.IGNORECASE
)
"""No docstring of a function begins with one of these: its first word is a verb."""


def linted_files() -> Iterator[tuple[Path, ast.Module]]:
    for package in LINTED:
        path = ROOT / package.replace(".", "/")
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
            yield file, ast.parse(file.read_text())


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every name that a file defines: functions, classes, arguments, variables, attributes, imports."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                yield node.lineno, name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from ((node.lineno, alias.asname) for alias in aliases if alias.asname)


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Text of errors and log lines: strings in `raise`, in calls of error classes and of loggers."""
    log_methods = {"debug", "info", "warning", "error", "exception", "critical"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            callee = ast.unparse(node.func).split(".")[-1]
            if not (callee.endswith("Error") or callee in log_methods):
                continue
        elif not isinstance(node, ast.Raise):
            continue
        for leaf in ast.walk(node):
            if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str) and " " in leaf.value:
                yield leaf.lineno, leaf.value


def without_allowed(text: str) -> str:
    for pattern in ALLOWED:
        text = re.sub(pattern, "", text, flags=re.IGNORECASE)
    return text


def test_names_and_messages_use_no_banned_words() -> None:
    violations = set()
    for file, tree in linted_files():
        for line, name in identifiers(tree):
            parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", without_allowed(name))
            if any(map(BANNED_WORD.fullmatch, parts)) or name in BANNED_IDENTIFIERS:
                violations.add(f"{file.relative_to(ROOT)}:{line}: name {name}")
        for line, text in messages(tree):
            if BANNED_IN_MESSAGES.search(without_allowed(text)):
                violations.add(f"{file.relative_to(ROOT)}:{line}: message {text!r}")
    assert not violations, "\n" + "\n".join(sorted(violations))


def public_docstrings(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, str]]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name[0] != "_":
            if text := ast.get_docstring(node):
                yield node, text
            if isinstance(node, ast.ClassDef):
                yield from public_docstrings(node.body)


def test_first_lines_of_public_docstrings_are_sentences() -> None:
    violations = []
    for file, tree in linted_files():
        whole = ast.get_docstring(tree)
        for node, text in [*([(tree, whole)] if whole else []), *public_docstrings(tree.body)]:
            first = text.splitlines()[0]
            where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}: {first}"
            if not first.endswith(".") or (first[0].islower() and not first.startswith(LOWER_CASE_NAMES)):
                violations.append(f"{where} (no sentence)")
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                is_property = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
                if not is_property and NO_VERB.fullmatch(first.split()[0]):
                    violations.append(f"{where} (no verb first)")
    assert not violations, "\n" + "\n".join(violations)


def prose(page: Path) -> str:
    """A page without code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def test_pages_use_no_banned_phrases_and_no_semicolon_chains() -> None:
    violations = []
    for page in PAGES:
        if page.name == "log.md":  # dated notes, which are not updated
            continue
        name, text = page.relative_to(ROOT), prose(page)
        violations += [f"{name}: {match[0]!r}" for match in BANNED_IN_PAGES.finditer(" ".join(text.split()))]
        for sentence in re.split(r"[.:!?|](?=\s)|\n\n", text):
            if sentence.count(";") > 1:
                violations.append(f"{name}: semicolons in {' '.join(sentence.split())[:80]!r}")
    assert not violations, "\n" + "\n".join(violations)


def test_every_wall_names_its_tests() -> None:
    page = ROOT / "docs" / "threats.md"
    violations = []
    for row in re.findall(r"^\| (?!threat \||---)(.*)$", page.read_text(), re.M):
        links = re.findall(r"\[(test\w*)\]\((\.\./tests/[\w/]+\.py)\)", row)
        if not links:
            violations.append(f"no test: {row[:60]}")
        for name, target in links:
            if name not in ("test", "tests") and f"def {name}(" not in (page.parent / target).read_text():
                violations.append(f"{name} is not in {target}")
    assert not violations, "\n" + "\n".join(violations)
