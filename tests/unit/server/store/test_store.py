"""The database keeps what it says it keeps: real SQLite files, and PostgreSQL where one is at hand."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.api.auth import create_key
from server.jobs import state as job_state
from server.jobs.state import Effect, Job, NotAllowedError, Output, QueuePosition, State
from server.store import (
    AlreadyOpenError,
    QueueFullError,
    QueueLimits,
    QuotaError,
    Store,
    WorkerRecord,
    audit,
    metadata,
)
from server.store.tables import OUTBOX
from server.store.workers import REPORT_EXPIRY_S
from tests.support.records import NO_FACE, POLICY, REQUEST, new_job


def noticed(store: Store) -> set[str]:
    """Jobs about which a notice waits."""
    with store.read_only() as connection:
        return set(
            connection.execute(sa.select(OUTBOX.c.job_id).where(OUTBOX.c.due_at.is_not(None))).scalars()
        )


def test_worker_is_listed_until_its_heartbeat_expires(store: Store) -> None:
    def seen(process: str, number: int, at: float, condition: str = "idle") -> WorkerRecord:
        return WorkerRecord(process, number, "here", f"cuda:{number}", "tiny", condition, 1, at)

    store.upsert_workers([seen("a", 0, 100.0), seen("a", 1, 100.0)])
    store.upsert_workers([seen("b", 0, 105.0)])
    assert store.live_workers(105.0) == [seen("a", 0, 100.0), seen("b", 0, 105.0), seen("a", 1, 100.0)]
    later = [seen("a", 0, 120.0, "busy"), seen("a", 1, 120.0)]
    store.upsert_workers(later)
    assert store.live_workers(106.0 + REPORT_EXPIRY_S) == later
    store.delete_workers("a", 106.0 + REPORT_EXPIRY_S)
    assert store.live_workers(0.0) == []


@pytest.mark.parametrize(("interval_s", "reads"), [(60.0, 1), (0.0, 2)])
def test_database_clock_is_read_once_per_interval(postgres_url: str, interval_s: float, reads: int) -> None:
    store = Store(postgres_url, clock_interval_s=interval_s)
    executed = record_statements(store)
    first, second = store.now(), store.now()
    assert 0 <= second - first < 5
    assert abs(second - time.time()) < 5
    assert len(executed) == reads
    store.close()


def test_connection_that_broke_while_idle_is_replaced(postgres_url: str) -> None:
    store = Store(postgres_url, ping_after_s=0.0)
    with store.autocommit() as connection:
        (process,) = connection.execute(sa.text("SELECT pg_backend_pid()")).scalars()
    other = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with other.connect() as connection:
        connection.execute(sa.text(f"SELECT pg_terminate_backend({process}, 5000)"))
    other.dispose()
    store.submit(new_job(), REQUEST)
    assert store.count_in_state(State.WAITING) == 1
    store.close()


def record_statements(store: Store) -> list[str]:
    """Collect the statements that the store executes from now on."""
    executed: list[str] = []

    @sa.event.listens_for(store._engine, "before_cursor_execute")
    def record(_: object, __: object, statement: str, *___: object) -> None:
        executed.append(statement)

    return executed


def test_jobs_survive_reopen(url: str) -> None:
    store = Store(url)
    job = new_job()
    record, is_new = store.submit(job, REQUEST)
    assert is_new
    claimed = store.claim(110.0, POLICY)
    assert claimed is not None
    store.change(
        job.id,
        120.0,
        lambda j: job_state.renew_lease(j, 1, 120.0, POLICY, job_state.StageProgress("render", 5, 9, 2.5)),
    )
    before = store.get(job.id)
    store.close()
    again = Store(url)
    assert again.get(job.id) == before
    assert before is not None
    assert before.request == record.request == REQUEST
    assert before.job.progress == job_state.StageProgress("render", 5, 9, 2.5)
    again.close()


def test_migrations_create_the_declared_tables(store: Store) -> None:
    with store._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), [metadata, audit.metadata]) == []


def test_audit_entries_cannot_be_changed(store: Store) -> None:
    store.audit.add(audit.AuditEntry(100.0, "server_started", {"marking": "required"}))
    changes: list[dict[str, object]] = [{"facts": "{}"}, {"at": 1.0}, {"job_id": "x"}]
    for values in changes:
        change = sa.update(audit.AUDIT).values(**values)
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), store._writer.begin() as connection:
            connection.execute(change)
    store.audit.add(audit.AuditEntry(200.0, "server_started", {}))
    assert [entry.facts for entry in store.audit.page()] == [{"marking": "required"}, {}]
    store.audit.delete_older(150.0, 300.0)
    assert [entry.at for entry in store.audit.page()] == [200.0, 300.0]


def test_audit_entries_cannot_be_replaced_or_deleted(store: Store) -> None:
    for at in (100.0, 200.0):
        store.audit.add(audit.AuditEntry(at, "server_started", {}))
    store.audit.seal(lambda entries: None)
    statements = [
        "DELETE FROM audit",
        "UPDATE audit_chain SET hash = 'x'",
        "DELETE FROM audit_chain",
    ]
    if store.is_shared:
        statements += ["TRUNCATE audit", "TRUNCATE audit_chain"]
        conflict = "ON CONFLICT (id) DO UPDATE SET at = 5"
        statements.append(f"INSERT INTO audit (id, at, event, facts) VALUES (1, 1, 'x', '{{}}') {conflict}")
    else:
        statements.append("INSERT OR REPLACE INTO audit (id, at, event, facts) VALUES (1, 1, 'x', '{}')")
        statements.append("REPLACE INTO audit_chain (number, entry_id, at, hash) VALUES (1, 1, 1, 'x')")
        statements.append("REPLACE INTO audit_chain (entry_id, at, hash) VALUES (1, 1, 'x')")
    for statement in statements:
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), store._writer.begin() as connection:
            connection.execute(sa.text(statement))
    assert [entry.at for entry in store.audit.page()] == [100.0, 200.0]


def test_audit_chain_shows_changes_made_around_the_triggers(store: Store) -> None:
    exported: list[audit.AuditEntry] = []
    for at in range(6):
        store.audit.add(audit.AuditEntry(float(at), "server_started", {"day": at, "name": "日"}, "studio"))
        if at % 2:
            store.audit.seal(exported.extend)
    assert store.audit.seal(exported.extend) == 0
    assert [entry.hash for entry in store.audit.page()] == [entry.hash for entry in exported]
    report = store.audit.verify()
    assert report == audit.ChainReport(6, exported[-1].hash or "", None)
    store.audit.delete_older(2.0, 10.0)
    store.audit.seal(exported.extend)
    assert store.audit.verify() == audit.ChainReport(7, exported[-1].hash or "", None)
    triggers = ["audit_is_append_only", "audit_is_kept"]
    with store._writer.begin() as connection:
        for name in triggers:
            connection.execute(sa.text(f"DROP TRIGGER {name}" + (" ON audit" if store.is_shared else "")))
        connection.execute(sa.text("UPDATE audit SET tenant = 'other' WHERE at = 4"))
    assert store.audit.verify().problem == "entry 5 was changed"
    with store._writer.begin() as connection:
        connection.execute(sa.text("UPDATE audit SET facts = 'no JSON' WHERE at = 4"))
    assert store.audit.verify().problem == "entry 5 was changed"
    assert {"unreadable": "no JSON"} in [entry.facts for entry in store.audit.page()]
    with store._writer.begin() as connection:
        connection.execute(sa.text("DELETE FROM audit WHERE at = 3"))
    assert (store.audit.verify().intact, store.audit.verify().problem) == (3, "entry 4 was deleted")


def test_audit_entry_is_committed_with_the_job(store: Store) -> None:
    job = new_job()
    store.submit(job, REQUEST)
    with pytest.raises(QueueFullError):
        store.submit(new_job(), REQUEST, limits=QueueLimits(1))
    claimed = store.claim(101.0, POLICY)
    assert claimed is not None
    with pytest.raises(NotAllowedError):
        store.change(
            job.id, 102.0, lambda job: job_state.succeed(job, 99, 102.0, Output("results/x.mp4", 1.0))
        )
    store.change(job.id, 103.0, lambda job: job_state.fail(job, job.fence, 103.0, NO_FACE, POLICY))
    matches = [(entry.event, entry.at, entry.job_id) for entry in store.audit.page()]
    assert matches == [("job_submitted", 100.0, job.id), ("job_ended", 103.0, job.id)]


def test_sqlite_file_is_opened_by_one_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    first = Store(url)
    program = f"from server.store import *\ntry: Store({url!r})\nexcept AlreadyOpenError: print('refused')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "refused\n"
    with pytest.raises(AlreadyOpenError):
        Store(url)
    first.close()
    Store(url).close()


def test_concurrent_starts_create_the_tables_once(postgres_url: str) -> None:
    program = f"from server.store import Store\nStore({postgres_url!r}).close()"
    starting = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait(60) for process in starting] == [0, 0]


def test_concurrent_submissions_with_one_key_create_one_job(store: Store) -> None:
    output, together = [], threading.Barrier(50)

    def submit() -> None:
        together.wait()
        output.append(store.submit(new_job(), REQUEST, idempotency_key="same"))

    threads = [threading.Thread(target=submit) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(output) == 50
    assert len({record.job.id for record, _ in output}) == 1
    assert sum(is_new for _, is_new in output) == 1
    other, is_new = store.submit(new_job("another studio"), REQUEST, idempotency_key="same")
    assert is_new
    assert other.job.tenant == "another studio"


def test_full_queue_rejects_jobs(store: Store) -> None:
    for _ in range(3):
        store.submit(new_job(), REQUEST, limits=QueueLimits(3))
    rejection = new_job()
    with pytest.raises(QueueFullError):
        store.submit(rejection, REQUEST, limits=QueueLimits(3))
    assert store.get(rejection.id) is None


def test_claim_alternates_between_tenants(store: Store) -> None:
    first, second, urgent = new_job(at=1.0), new_job(at=2.0), new_job(at=3.0, priority=5)
    other = new_job("small studio", at=50.0)
    for job in (first, second, urgent, other):
        store.submit(job, REQUEST)
    turns = job_state.queue_positions(store.waiting_jobs())
    assert [turns[job.id].position for job in (first, second, urgent, other)] == [1, 2, 0, 0]
    order = []
    while (record := store.claim(100.0 + len(order), POLICY)) is not None:
        order.append(record.job.id)
    # Both tenants in turn while both wait, in each the urgent before the old.
    assert order[:2] in ([urgent.id, other.id], [other.id, urgent.id])
    assert order[2:] == [first.id, second.id]


def test_concurrent_claims_never_share_a_job(store: Store) -> None:
    for number in range(40):
        store.submit(new_job(f"tenant {number % 3}"), REQUEST)
    got: list[str] = []

    def work() -> None:
        while (record := store.claim(200.0, POLICY)) is not None:
            got.append(record.job.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while (record := store.claim(200.0, POLICY)) is not None:  # whom another's lock had hidden
        got.append(record.job.id)
    assert len(got) == len(set(got)) == 40


def test_jobs_of_other_tenants_are_not_listed(store: Store) -> None:
    mine, theirs = [new_job(at=float(i)) for i in range(5)], new_job("other")
    for job in (*mine, theirs):
        store.submit(job, REQUEST)
    assert store.get(theirs.id, "studio") is None
    page, total = store.page("studio", offset=1, limit=2)
    assert ([record.job.id for record in page], total) == ([mine[3].id, mine[2].id], 5)
    assert store.page("studio", offset=0, limit=9, created_from=2.0, created_to=3.0)[1] == 2
    assert store.page("studio", offset=0, limit=9, states=[State.FAILED])[1] == 0
    assert store.page("studio", offset=0, limit=9, endpoint="a/b")[1] == 5
    assert store.page("studio", offset=0, limit=9, endpoint="c/d")[1] == 0


def test_delete_removes_only_ended_jobs_of_the_tenant(store: Store) -> None:
    ended, waiting, theirs = new_job(), new_job(), new_job("other")
    for job in (ended, waiting, theirs):
        store.submit(job, REQUEST)
    for job in (ended, theirs):
        store.change(job.id, 101.0, lambda j: job_state.cancel(j, 101.0))
    gone = store.delete([ended.id, waiting.id, theirs.id, "f" * 32], "studio")
    assert [record.job.id for record in gone] == [ended.id]
    assert store.get(ended.id) is None
    assert store.get(theirs.id) is not None


def test_rejected_transition_changes_nothing(store: Store) -> None:
    job = new_job()
    store.submit(job, REQUEST)
    before = store.get(job.id)
    with pytest.raises(NotAllowedError):
        store.change(job.id, 101.0, lambda j: job_state.succeed(j, 1, 101.0, Output("x", 1.0)))
    assert store.get(job.id) == before
    assert not noticed(store)
    with pytest.raises(KeyError):
        store.change("0" * 32, 101.0, lambda j: j)


def test_outbox_holds_one_webhook_per_ended_job(store: Store) -> None:
    job = new_job()
    store.submit(job, REQUEST)
    store.claim(110.0, POLICY)
    result = store.change(job.id, 120.0, lambda j: job_state.succeed(j, 1, 120.0, Output("x.mp4", 2.0)))
    assert result.effects == {Effect.NOTIFY}
    (notice,) = store.claim_webhooks(120.0, 10, 60.0)
    assert (notice.job_id, notice.url, notice.tries) == (job.id, REQUEST.webhook_url, 0)
    assert store.claim_webhooks(179.0, 10, 60.0) == [], "somebody else delivers it"
    store.webhook_failed(notice.id, "HTTP 503", 130.0)
    assert store.claim_webhooks(129.0, 10, 60.0) == []
    (again,) = store.claim_webhooks(130.0, 10, 60.0)
    assert (again.id, again.tries, again.last_error) == (notice.id, 1, "HTTP 503")
    (again,) = store.claim_webhooks(190.0, 10, 60.0)
    assert again.id == notice.id, "whoever had it is gone"
    store.webhook_failed(notice.id, "HTTP 503", None)
    assert store.claim_webhooks(1e9, 10, 60.0) == []
    assert [dead.id for dead in store.dead_webhooks(10)] == [notice.id]
    assert store.count_webhooks() == (0, 1)
    assert store.retry_webhook(notice.id, 135.0)
    assert not store.retry_webhook(notice.id, 135.0)
    assert [again.id for again in store.claim_webhooks(135.0, 10, 60.0)] == [notice.id]
    store.webhook_delivered(notice.id, 140.0)
    assert store.dead_webhooks(10) == []
    assert store.count_webhooks() == (0, 0)


def test_webhooks_are_claimed_in_turns_of_tenants(store: Store) -> None:
    for tenant, at in (("loud", 100.0), ("loud", 101.0), ("loud", 102.0), ("calm", 103.0)):
        job = new_job(tenant, at=at)
        store.submit(job, REQUEST)
        store.change(job.id, at, lambda job, at=at: job_state.cancel(job, at))  # type: ignore[misc]
    claimed = [[entry.tenant for entry in store.claim_webhooks(110.0, 9, 60.0)] for _ in range(2)]
    assert [sorted(tenants) for tenants in claimed] == [["calm", "loud"], ["loud"]]
    assert store.next_webhook_at() == 102.0
    assert store.claim_webhooks(110.0, 9, 60.0, ["loud"]) == []
    assert store.next_webhook_at(["loud"]) == 170.0


def test_tenant_fills_only_its_share_of_the_queue(store: Store) -> None:
    limits = QueueLimits(max_waiting=5, max_waiting_per_tenant=3)
    for _ in range(3):
        store.submit(new_job("loud"), REQUEST, limits=limits)
    with pytest.raises(QuotaError, match="3 places of the queue, fill 3"):
        store.submit(new_job("loud"), REQUEST, limits=limits)
    with pytest.raises(QuotaError):
        store.require_room(REQUEST.key_id, "loud", 100.0, 1, limits)
    store.require_room(REQUEST.key_id, "calm", 100.0, 2, limits)
    store.submit(new_job("calm"), REQUEST, limits=limits)


def test_deleted_jobs_count_against_the_daily_quota(store: Store) -> None:
    _, key = create_key(store, 0.0, max_jobs_per_day=2)
    for at in (100.0, 200.0):
        job = new_job(at=at)
        store.submit(job, dataclasses.replace(REQUEST, key_id=key.id))
        store.change(job.id, at, lambda job, at=at: job_state.cancel(job, at))  # type: ignore[misc]
        assert len(store.delete([job.id], job.tenant)) == 1
    with pytest.raises(QuotaError, match="2 jobs in 24 hours, has submitted 2") as error:
        store.submit(new_job(at=300.0), dataclasses.replace(REQUEST, key_id=key.id))
    assert error.value.wait_s == pytest.approx(86400 - 200)


def test_key_quota_limits_submissions(store: Store) -> None:
    def submit(at: float, **given: str) -> Job:
        job = new_job(at=at)
        store.submit(job, dataclasses.replace(REQUEST, **given))
        return job

    _, key = create_key(store, 0.0, max_active_jobs=2, max_jobs_per_day=3)
    first = submit(100.0, key_id=key.id)
    submit(200.0, key_id=key.id)
    with pytest.raises(QuotaError, match="2 unfinished"):
        submit(300.0, key_id=key.id)
    submit(300.0)  # another key
    store.change(first.id, 310.0, lambda job: job_state.cancel(job, 310.0))
    third = submit(320.0, key_id=key.id)
    store.change(third.id, 330.0, lambda job: job_state.cancel(job, 330.0))
    with pytest.raises(QuotaError, match="3 jobs in 24 hours") as error:
        submit(400.0, key_id=key.id)
    assert error.value.wait_s == pytest.approx(86400 - 300)
    submit(86501.0, key_id=key.id)


def test_queue_position_counts_earlier_jobs(store: Store) -> None:
    mine = [new_job("mine", at=float(i)) for i in range(3)]
    for job in [*mine, *(new_job("busy", at=float(i)) for i in range(50)), new_job("calm", at=0.0)]:
        store.submit(job, REQUEST)
    turns = job_state.queue_positions(store.waiting_jobs())
    # In turns: of the busy tenant as many as of mine until then and one more, and the calm one's only one.
    assert [turns[job.id] for job in mine] == [QueuePosition(0, 2), QueuePosition(1, 4), QueuePosition(2, 6)]
    assert store.oldest_waiting_at() == 0.0


def test_expire_ends_long_waits_and_lost_leases(store: Store) -> None:
    old, lost, healthy = new_job(at=0.0), new_job(at=900.0), new_job(at=901.0)
    store.submit(lost, REQUEST)
    store.submit(healthy, REQUEST)
    store.claim(905.0, POLICY)
    store.claim(990.0, POLICY)
    store.submit(old, REQUEST)
    changed = {change.record.job.id: change.record.job for change in store.expire(1001.0, POLICY)}
    assert set(changed) == {old.id, lost.id}
    assert changed[old.id].failure == job_state.WAIT_TIMEOUT
    assert changed[lost.id].state is State.WAITING


# --- the database and the pure table, driven together ---


class Both(RuleBasedStateMachine):
    """Every event goes to the store and to a plain dictionary of jobs; they never differ."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store("sqlite://")
        self.model: dict[str, Job] = {}
        self.now = 1000.0
        self.ended: set[str] = set()

    def teardown(self) -> None:
        self.store.close()

    def both(self, job_id: str, transition: Callable[[Job], Job]) -> None:
        try:
            expected = transition(self.model[job_id])
        except NotAllowedError:
            with pytest.raises(NotAllowedError):
                self.store.change(job_id, self.now, transition)
            return
        self.note(self.model[job_id], expected)
        assert self.store.change(job_id, self.now, transition).record.job == expected

    def note(self, before: Job, after: Job) -> None:
        if Effect.NOTIFY in job_state.effects(before, after):
            assert after.id not in self.ended
            self.ended.add(after.id)
        self.model[after.id] = after

    @rule(tenant=st.sampled_from(["a", "b"]), priority=st.sampled_from([0, 1]))
    def submit(self, tenant: str, priority: int) -> None:
        job = new_job(tenant, self.now, priority)
        self.store.submit(job, REQUEST)
        self.model[job.id] = job

    @rule(seconds=st.sampled_from([1.0, 50.0, 300.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def claim(self) -> None:
        record = self.store.claim(self.now, POLICY)
        waiting = [job for job in self.model.values() if job.state is State.WAITING]
        assert (record is None) == (not waiting)
        if record is not None:
            next_job = self.model[record.job.id]
            same = [job for job in waiting if job.tenant == next_job.tenant]
            assert next_job == min(same, key=lambda job: (-job.priority, job.created_at, job.id))
            assert job_state.claim(next_job, self.now, POLICY) == record.job
            self.model[next_job.id] = record.job

    @rule()
    def expire(self) -> None:
        changed = {change.record.job.id: change.record.job for change in self.store.expire(self.now, POLICY)}
        for job in list(self.model.values()):
            after = job_state.expire(job, self.now, POLICY)
            assert changed.get(job.id, job) == after
            self.note(job, after)

    @rule(data=st.data(), what=st.sampled_from(["cancel", "beat", "succeed", "fail", "requeue", "confirm"]))
    @precondition(lambda self: self.model)
    def event(self, data: st.DataObject, what: str) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.model)))
        fence, now = self.model[job_id].fence - data.draw(st.sampled_from([0, 0, 0, 1])), self.now
        transitions: dict[str, Callable[[Job], Job]] = {
            "cancel": lambda j: job_state.cancel(j, now),
            "beat": lambda j: job_state.renew_lease(j, fence, now, POLICY),
            "succeed": lambda j: job_state.succeed(j, fence, now, Output("x", 1.0)),
            "fail": lambda j: job_state.fail(j, fence, now, NO_FACE, POLICY),
            "requeue": lambda j: job_state.requeue(j, fence, now),
            "confirm": lambda j: job_state.confirm_cancel(j, fence, now),
        }
        self.both(job_id, transitions[what])

    @invariant()
    def they_agree(self) -> None:
        for job in self.model.values():
            record = self.store.get(job.id)
            assert record is not None
            assert record.job == job
        assert noticed(self.store) == self.ended


Both.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestTogether = Both.TestCase
