"""deploy/kuberay.yaml: the program accepts its settings and its command line."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.cli.cluster import create_parser
from server.settings import SettingsError, load_settings
from server.storage.links import LinkSigner
from tests.support.paths import ROOT

RESOURCES: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text()))


def resource(kind: str, name: str = "lipsync") -> dict[str, Any]:
    (match,) = [one for one in RESOURCES if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return match


CLUSTER = resource("RayJob")["spec"]["rayClusterSpec"]


def pods() -> list[dict[str, Any]]:
    (group,) = CLUSTER["workerGroupSpecs"]
    api = resource("Deployment", "lipsync-api")
    return [one["template"]["spec"] for one in (CLUSTER["headGroupSpec"], group, api["spec"])]


def test_settings_are_accepted_but_no_placeholder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, secrets = resource("ConfigMap")["data"], resource("Secret")["stringData"]
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("/secret", str(tmp_path)))
    for name, value in secrets.items():
        (tmp_path / name).write_text(value)
    for name, value in (
        ("database_url", secrets["database_url"].replace("PASSWORD", "4f1c9e0b7a2d8853")),
        ("s3_secret_key", "4f1c9e0b7a2d8853"),
        ("first_key", "4f1c9e0b7a2d8853" * 2),
    ):
        with pytest.raises(SettingsError, match=r"placeholder|32 to 200"):
            load_settings()
        (tmp_path / name).write_text(value)
    settings = load_settings()
    with pytest.raises(ValueError, match="can be guessed"):
        LinkSigner.from_file(settings.link_secret_path)
    assert settings.effective_database_url.startswith("postgresql+psycopg://")
    assert str(settings.blob_location).startswith("s3://")
    (group,) = CLUSTER["workerGroupSpecs"]
    assert (settings.cluster_min, settings.cluster_max) == (group["minReplicas"], group["maxReplicas"])


def test_secrets_are_files_in_every_pod() -> None:
    secrets = resource("Secret")["stringData"]
    files = [value for value in resource("ConfigMap")["data"].values() if value.startswith("/secret/")]
    assert {Path(file).name for file in files} == set(secrets)
    for pod in pods():
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
        assert mounts["secret"] == "/secret"
        (volume,) = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "secret"]
        assert volume == {"secretName": "lipsync", "defaultMode": 0o440}
        assert container["envFrom"] == [{"configMapRef": {"name": "lipsync"}}]


def test_every_pod_is_limited() -> None:
    for pod in pods():
        context, (container,) = pod["securityContext"], pod["containers"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 10001)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert container["name"] == "head" or pod["automountServiceAccountToken"] is False


def test_network_policies_close_ray_and_the_api() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    labels = resource("Deployment", "lipsync-api")["spec"]["template"]["metadata"]["labels"]
    for name, selected in (("lipsync-api", labels), ("lipsync-ray", {"ray.io/is-ray-node": "yes"})):
        policy = resource("NetworkPolicy", name)["spec"]
        assert policy["podSelector"] == {"matchLabels": selected}
        assert policy["policyTypes"] == ["Ingress"]
        (rule,) = policy["ingress"]
        assert rule["from"]


def test_entrypoint_is_a_valid_command() -> None:
    program, command, *arguments = resource("RayJob")["spec"]["entrypoint"].split()
    assert (program, command) == ("lipsync", "cluster")
    assert create_parser().parse_args(arguments).address == "auto"


def test_ray_version_is_the_pinned_one() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'lipsync-engine[ray]'")
    assert version("ray") == CLUSTER["rayVersion"]
