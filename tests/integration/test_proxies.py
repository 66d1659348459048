"""Links behind nginx and Caddy: with docs/deploy.md's configurations, and with nginx' own Host header."""

from __future__ import annotations

import contextlib
import getpass
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.live_server import LiveServer
from tests.support.paths import ROOT
from tests.support.polling import wait_until

FORWARDS = "X-Forwarded-Proto $scheme; X-Forwarded-Host $host; X-Forwarded-Port $server_port"


def sample(language: str, number: int = 0) -> str:
    """A configuration in docs/deploy.md."""
    page = (ROOT / "docs" / "deploy.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)[number]


def nginx_server(location: str, port: int) -> str:
    return f"server {{ listen 127.0.0.1:{port}; {location} }}"


def nginx_cases(server: str, port: int) -> Iterator[tuple[str, str, str]]:
    """(name, configuration, path prefix)"""
    own = re.sub(r"    (listen|ssl_certificate|ssl_certificate_key|server_name) .*\n", "", sample("nginx"))
    own = own.replace("server {", f"server {{ listen 127.0.0.1:{port};").replace(
        "http://127.0.0.1:8000", server
    )
    yield "sample", own, ""
    headers = "".join(f"proxy_set_header {header};" for header in FORWARDS.split("; "))
    yield "own Host", nginx_server(f"location / {{ proxy_pass {server}; {headers} }}", port), ""
    headers += "proxy_set_header X-Forwarded-Prefix /lipsync;"
    for name, target in (("prefix", f"{server}/"), ("kept prefix", server)):
        location = f"location /lipsync/ {{ proxy_pass {target}; {headers} }}"
        yield name, nginx_server(location, port), "/lipsync"


def caddy_cases(server: str, port: int) -> Iterator[tuple[str, str, str]]:
    for number, prefix in enumerate(("", "/lipsync")):
        own = sample("caddy", number).replace("lipsync.example", f"http://127.0.0.1:{port}")
        own = own.replace("127.0.0.1:8000", server.removeprefix("http://"))
        yield f"sample {number}", f"{{\n    admin off\n    auto_https off\n}}\n{own}", prefix


@contextlib.contextmanager
def run_proxy(program: str, configuration: str, port: int, folder: Path) -> Iterator[None]:
    folder.mkdir()
    file = folder / "config"
    if program == "nginx":
        names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{name}_temp_path {folder / name};" for name in names)
        log_file, user = folder / "error.log", getpass.getuser()  # as root, its workers would be nobody
        head = f"user {user}; daemon off; pid {folder}/pid; error_log {log_file}; events {{}}"
        file.write_text(f"{head}\nhttp {{ access_log off; {paths}\n{configuration} }}\n")
        command = ["nginx", "-e", str(log_file), "-p", str(folder), "-c", str(file)]
    else:
        file.write_text(configuration)
        command = ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]
    environment = {"PATH": "/usr/sbin:/usr/bin:/bin:/usr/local/bin", "HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: is_open(port), f"{program} does not listen: {(folder / 'log').read_text()}", 10)
        yield
    finally:
        process.terminate()
        process.wait(10)


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(("program", "cases"), [("nginx", nginx_cases), ("caddy", caddy_cases)])
def test_every_link_leads_through_the_proxy(
    program: str,
    cases: Callable[[str, int], Iterator[tuple[str, str, str]]],
    start_server: Callable[..., LiveServer],
    subtests: pytest.Subtests,
    tmp_path: Path,
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    server, port = start_server(devices="none"), free_port()
    direct = server.base
    for number, (name, configuration, prefix) in enumerate(cases(direct, port)):
        with subtests.test(name=name), run_proxy(program, configuration, port, tmp_path / str(number)):
            base = f"http://127.0.0.1:{port}{prefix}"
            # nginx takes 1 MB unless the configuration has another limit
            content = bytes(2_000_000 if name.startswith("sample") else 500_000)
            status, ticket = server.request(
                "POST", f"{base}/api/v3/media/uploads", {"filename": "v.mp4", "size": len(content)}
            )
            assert status == 200, ticket
            put, get = ticket["data"]["upload"]["url"], ticket["data"]["download_url"]
            assert put.startswith(f"{base}/uploads/")
            assert get.startswith(f"{base}/files/")
            assert server.request("PUT", put, content)[0] == 200
            assert server.request("GET", get) == (200, content)
            body = {"video": get, "audio": "https://media.example/a.wav"}
            status, job = server.request("POST", f"{base}/api/v3/bytedance/latentsync/", body)
            assert status == 200, job
            assert job["data"]["urls"]["get"].startswith(f"{base}/api/v3/predictions/")
            assert server.request("GET", job["data"]["urls"]["get"])[0] == 200
            assert b"<html" in server.request("GET", f"{base}/")[1]
