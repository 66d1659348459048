"""/admin/keys: keys are created, changed, rotated, imported and revoked, and an administrator remains."""

from __future__ import annotations

import time
from typing import Any

import pytest
from httpx2 import Response

from tests.support.application import Api


def create(api: Api, body: object = None, query: str = "") -> Response:
    return api.client.post(f"/admin/keys{query}", json=body, headers=api.headers)


def call(api: Api, method: str, path: str, body: object = None) -> Response:
    return api.client.request(method, f"/admin/keys/{path}", json=body, headers=api.headers)


def is_accepted(api: Api, key: str) -> bool:
    response = api.client.get("/api/native/v1/me", headers={"Authorization": f"Bearer {key}"})
    assert response.status_code in (200, 401)
    return response.status_code == 200


def stored(api: Api, key_id: str) -> dict[str, Any]:
    (key,) = (key for key in call(api, "GET", "").json() if key["id"] == key_id)
    return dict(key)


def test_key_is_created_from_json_and_from_the_query(api: Api) -> None:
    body = {"tenant": "acme", "name": "ci", "scopes": "read", "max_active_jobs": 2, "expires_in": 60}
    for response in (
        create(api, body),
        create(api, body | {"scopes": ["read"]}),
        create(api, query="?tenant=acme&name=ci&scopes=read&max_active_jobs=2&expires_in=60"),
    ):
        key = response.json()
        assert (key["tenant"], key["name"], key["scopes"], key["max_active_jobs"]) == (
            "acme",
            "ci",
            "read",
            2,
        )
        assert 50 < key["expires_at"] - time.time() <= 60
        assert is_accepted(api, key["key"])
        assert {name: value for name, value in key.items() if name not in ("key", "last_used_at")} == {
            name: value for name, value in stored(api, key["id"]).items() if name != "last_used_at"
        }
    numbers = create(api, query="?name=1234&tenant=7").json()
    assert (numbers["name"], numbers["tenant"], numbers["scopes"]) == ("1234", "7", "read run")
    assert create(api, {"expires_at": "2999-01-01T00:00:00Z"}).json()["expires_at"] == 32472144000.0


def test_wrong_and_unknown_fields_of_a_key_are_named(subtests: pytest.Subtests, api: Api) -> None:
    count = len(api.server.store.list_keys())
    for body, name in (
        ({"tpyo": 1}, "tpyo"),
        ({"tenant": "a b"}, "tenant"),
        ({"tenant": None}, "tenant"),
        ({"name": "x" * 101}, "name"),
        ({"scopes": "root"}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"max_active_jobs": "2"}, "max_active_jobs"),
        ({"max_jobs_per_day": True}, "max_jobs_per_day"),
        ({"expires_at": "soon"}, "expires_at"),
        ({"expires_at": 1}, "expires_at"),
        ({"expires_in": -1}, "expires_in"),
        ({"expires_in": 1, "expires_at": None}, "expires_in"),
        ({"key": "wsk_short"}, "key"),
    ):
        with subtests.test(body=body):
            response = create(api, body)
            assert (response.status_code, response.json()["error_code"]) == (400, "invalid_parameter")
            assert name in response.json()["message"]
    for query in ("?days=1", "?typo_limit=5", "?max_active_jobs=x"):
        assert create(api, query=query).status_code == 400
    assert create(api, {"name": "a"}, "?name=b").status_code == 400
    assert len(api.server.store.list_keys()) == count


def test_existing_key_is_imported_once(api: Api) -> None:
    own = "wsk_" + "Ab1-_" * 8
    made = create(api, {"key": own, "tenant": "acme"}).json()
    assert made["key"] == own
    assert is_accepted(api, own)
    again = create(api, {"key": own})
    assert (again.status_code, again.json()["error_code"]) == (409, "key_exists")
    assert own not in call(api, "GET", "").text


def test_key_is_changed(api: Api) -> None:
    made = create(api, {"name": "a", "max_active_jobs": 2, "expires_in": 60}).json()
    changes = {"name": "b", "scopes": ["read", "admin"], "requests_per_minute": 7, "max_active_jobs": None}
    changed = call(api, "PATCH", made["id"], changes | {"expires_at": None}).json()
    assert changed == stored(api, made["id"])
    assert (changed["name"], changed["scopes"], changed["expires_at"]) == ("b", "admin read", None)
    assert (changed["requests_per_minute"], changed["max_active_jobs"]) == (7, None)
    own = {"Authorization": f"Bearer {made['key']}"}
    assert api.client.get("/admin/keys", headers=own).status_code == 200
    for body in ({"tenant": "x"}, {"key": "k" * 40}, {"nmae": "x"}):
        assert call(api, "PATCH", made["id"], body).status_code == 400
    events = [entry for entry in api.audit_entries() if entry["key_id"] == made["id"]]
    assert [entry["event"] for entry in events] == ["key_created", "key_changed", "admin_request"]
    assert events[1]["facts"]["name"] == "b"
    assert events[1]["facts"]["by"] == api.key.split("_")[1]


def test_rotated_key_overlaps_with_the_new_one(api: Api) -> None:
    made = create(api, {"tenant": "acme", "name": "ci", "max_active_jobs": 2, "expires_in": 1000}).json()
    secret = api.server.store.get_key(made["id"]).webhook_secret  # type: ignore[union-attr]
    new = call(api, "POST", f"{made['id']}/rotate", {"overlap_s": 60}).json()
    assert (new["replaces"], new["tenant"], new["name"], new["max_active_jobs"]) == (
        made["id"],
        "acme",
        "ci",
        2,
    )
    assert new["id"] != made["id"]
    assert 990 < new["expires_at"] - time.time() <= 1000
    assert api.server.store.get_key(new["id"]).webhook_secret == secret  # type: ignore[union-attr]
    assert is_accepted(api, made["key"])
    assert is_accepted(api, new["key"])
    assert 50 < stored(api, made["id"])["expires_at"] - time.time() <= 60
    call(api, "POST", f"{new['id']}/rotate", {"overlap_s": 0})
    assert not is_accepted(api, new["key"])
    assert call(api, "POST", f"{new['id']}/rotate").status_code == 404
    assert call(api, "POST", f"{made['id']}/rotate", {"overlap": 1}).status_code == 400


def test_webhook_secret_is_replaced_at_once(api: Api) -> None:
    own = api.key.split("_")[1]
    old = api.client.get("/api/v3/webhook/secret", headers=api.headers).json()["data"]["secret"]
    new = call(api, "POST", f"{own}/webhook-secret").json()["webhook_secret"]
    assert new != old
    assert api.client.get("/api/v3/webhook/secret", headers=api.headers).json()["data"]["secret"] == new
    assert new not in str(api.audit_entries())


def test_last_administrator_remains(api: Api) -> None:
    own = api.key.split("_")[1]
    for method, body in (("DELETE", None), ("PATCH", {"scopes": "read"}), ("PATCH", {"expires_in": 9})):
        response = call(api, method, own, body)
        assert (response.status_code, response.json()["error_code"]) == (409, "last_admin_key")
    assert call(api, "PATCH", own, {"name": "mine"}).status_code == 200
    successor = call(api, "POST", f"{own}/rotate").json()  # the new key is an administrator's
    assert call(api, "DELETE", own).status_code == 204
    assert not is_accepted(api, api.key)
    api.key = successor["key"]
    assert call(api, "DELETE", successor["id"]).status_code == 409


def test_unknown_and_revoked_keys_are_not_found(api: Api) -> None:
    made = create(api, {}).json()["id"]
    assert call(api, "DELETE", made).status_code == 204
    for key_id in (made, "0" * 16):
        for method, path in (
            ("DELETE", key_id),
            ("PATCH", key_id),
            ("POST", f"{key_id}/rotate"),
            ("POST", f"{key_id}/webhook-secret"),
        ):
            response = call(api, method, path, {} if method == "PATCH" else None)
            assert (response.status_code, response.json()["error_code"]) == (404, "not_found"), path
