"""The file for Kubernetes says what the program understands; no operator reads it here."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
import yaml

from server.cli.cluster import create_parser
from server.settings import PREFIX, Settings
from tests.support.paths import ROOT

PARTS: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text()))


def part(kind: str, name: str = "lipsync") -> dict[str, Any]:
    (found,) = [part for part in PARTS if (part["kind"], part["metadata"]["name"]) == (kind, name)]
    return found


GIVEN = {**part("Secret")["stringData"], **part("ConfigMap")["data"]}
CLUSTER = part("RayJob")["spec"]["rayClusterSpec"]
HEAD = CLUSTER["headGroupSpec"]["template"]["spec"]
(GROUP,) = CLUSTER["workerGroupSpecs"]
WORKER = GROUP["template"]["spec"]
API = part("Deployment", "lipsync-api")["spec"]["template"]["spec"]


def test_what_it_gives_are_settings() -> None:
    ours = {
        name.removeprefix(PREFIX).lower(): value for name, value in GIVEN.items() if name.startswith(PREFIX)
    }
    settings = Settings(**ours)
    assert settings.effective_database_url.startswith("postgresql+psycopg://")
    assert str(settings.blob_location).startswith("s3://")
    assert (settings.cluster_min, settings.cluster_max) == (GROUP["minReplicas"], GROUP["maxReplicas"])
    for pod in (HEAD, WORKER, API):
        (container,) = pod["containers"]
        assert container["envFrom"] == [
            {"secretRef": {"name": "lipsync"}},
            {"configMapRef": {"name": "lipsync"}},
        ]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
        (secret,) = [v["secret"]["secretName"] for v in pod["volumes"] if v["name"] == "secret"]
        (file,) = part("Secret", secret)["stringData"]
        assert str(settings.link_secret) == f"{mounts['secret']}/{file}"
    assert API["containers"][0]["env"] == [{"name": f"{PREFIX}DEVICES", "value": "none"}]


def test_it_runs_what_there_is() -> None:
    program, command, *arguments = part("RayJob")["spec"]["entrypoint"].split()
    assert (program, command) == ("lipsync", "cluster")
    assert create_parser().parse_args(arguments).address == "auto"
    assert API["containers"][0]["command"] == ["lipsync", "serve"]
    assert API["containers"][0]["ports"] == [{"containerPort": Settings.model_fields["port"].default}]
    (port,) = part("Service")["spec"]["ports"]
    assert port["targetPort"] == Settings.model_fields["port"].default
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0", "the head renders nothing"
    dockerfile = (ROOT / "Dockerfile.cuda").read_text()
    assert f"LIPSYNC_WEIGHTS_DIR={WORKER['containers'][0]['volumeMounts'][1]['mountPath']}" in dockerfile
    assert "postgresql,ray" in dockerfile


def test_it_is_for_the_ray_that_is_pinned() -> None:
    assert f"ray=={CLUSTER['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'lipsync-engine[ray]'")
    assert version("ray") == CLUSTER["rayVersion"]
