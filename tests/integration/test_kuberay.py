"""deploy/kuberay.yaml: the program accepts its settings and its command line."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
import yaml

from server.cli.cluster import create_parser
from server.settings import PREFIX, Settings
from tests.support.paths import ROOT

RESOURCES: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text()))


def resource(kind: str, name: str = "lipsync") -> dict[str, Any]:
    (match,) = [one for one in RESOURCES if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return match


CLUSTER = resource("RayJob")["spec"]["rayClusterSpec"]


def test_settings_are_accepted() -> None:
    variables = {**resource("Secret")["stringData"], **resource("ConfigMap")["data"]}
    values = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in variables.items()
        if name.startswith(PREFIX)
    }
    with pytest.raises(ValueError, match="placeholder"):
        Settings(**values)
    values["database_url"] = values["database_url"].replace("PASSWORD", "a password")
    settings = Settings(**values)
    assert settings.effective_database_url.startswith("postgresql+psycopg://")
    assert str(settings.blob_location).startswith("s3://")
    (group,) = CLUSTER["workerGroupSpecs"]
    assert (settings.cluster_min, settings.cluster_max) == (group["minReplicas"], group["maxReplicas"])


def test_link_secret_is_mounted_in_every_pod() -> None:
    (group,) = CLUSTER["workerGroupSpecs"]
    api = resource("Deployment", "lipsync-api")["spec"]["template"]["spec"]
    link_secret = resource("ConfigMap")["data"][f"{PREFIX}LINK_SECRET"]
    for pod in (CLUSTER["headGroupSpec"]["template"]["spec"], group["template"]["spec"], api):
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
        (secret,) = [v["secret"]["secretName"] for v in pod["volumes"] if v["name"] == "secret"]
        (file,) = resource("Secret", secret)["stringData"]
        assert link_secret == f"{mounts['secret']}/{file}"


def test_entrypoint_is_a_valid_command() -> None:
    program, command, *arguments = resource("RayJob")["spec"]["entrypoint"].split()
    assert (program, command) == ("lipsync", "cluster")
    assert create_parser().parse_args(arguments).address == "auto"


def test_ray_version_is_the_pinned_one() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'lipsync-engine[ray]'")
    assert version("ray") == CLUSTER["rayVersion"]
