"""protocol.journal: what is written is there after a crash, and keys and nonces are kept apart."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import ConfigError
from protocol.journal import Attempt, IntentState, Journal
from protocol.transactions import Call

CHAIN, ACCOUNT = "31337:00", "0x" + "11" * 20
CALL = Call("0x" + "22" * 20, b"\x01\x02", "do it", "TaskMarket", "claim", value=3)  # type: ignore[arg-type]


def attempt(nonce: int, name: bytes = b"a") -> Attempt:
    return Attempt(name * 32, nonce, b"raw", 21_000, 2**80, 10**9, 1.5)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as opened:
        yield opened


def test_intent_and_attempts_come_back_as_written(journal: Journal) -> None:
    intent = journal.add(CHAIN, ACCOUNT, CALL, "key")
    assert intent.state is IntentState.INTENT and intent.same_as(CALL) and intent.kind == "TaskMarket.claim"
    signed = journal.add_attempt(intent, attempt(4))
    replaced = journal.add_attempt(signed, attempt(4, b"b"))
    assert replaced.state is IntentState.SIGNED
    assert replaced.attempts == (attempt(4), attempt(4, b"b")) and replaced.nonce == 4
    assert journal.get(intent.id) == replaced


def test_key_is_free_again_after_failure_only(journal: Journal) -> None:
    first = journal.add(CHAIN, ACCOUNT, CALL, "key")
    with pytest.raises(sqlite3.IntegrityError):
        journal.add(CHAIN, ACCOUNT, CALL, "key")
    journal.set_state(first, IntentState.FAILED)
    assert journal.find(CHAIN, ACCOUNT, "key") is None
    second = journal.add(CHAIN, ACCOUNT, CALL, "key")
    journal.set_state(second, IntentState.MINED, mined_hash=b"h", mined_block=1)
    found = journal.find(CHAIN, ACCOUNT, "key")
    assert found is not None and found.id == second.id


def test_chains_and_accounts_do_not_see_each_other(journal: Journal) -> None:
    journal.add_attempt(journal.add(CHAIN, ACCOUNT, CALL, "key"), attempt(9))
    for chain, account in (("31337:01", ACCOUNT), (CHAIN, "0x" + "33" * 20)):
        assert journal.next_nonce(chain, account) == 0
        assert journal.unfinished(chain, account) == []
        assert journal.find(chain, account, "key") is None
        journal.add(chain, account, CALL, "key")


def test_next_nonce_counts_what_may_still_be_mined(journal: Journal) -> None:
    sent = journal.add_attempt(journal.add(CHAIN, ACCOUNT, CALL, None), attempt(4))
    assert journal.next_nonce(CHAIN, ACCOUNT) == 5
    refused = journal.add_attempt(journal.add(CHAIN, ACCOUNT, CALL, None), attempt(5, b"b"))
    journal.set_state(refused, IntentState.FAILED)
    assert journal.next_nonce(CHAIN, ACCOUNT) == 5, "a refused transaction leaves its nonce free"
    reverted = journal.add_attempt(journal.add(CHAIN, ACCOUNT, CALL, None), attempt(5, b"c"))
    journal.set_state(reverted, IntentState.FAILED, mined_hash=b"c" * 32, mined_block=3)
    assert journal.next_nonce(CHAIN, ACCOUNT) == 6, "a reverted one has used it"
    journal.set_state(sent, IntentState.REPLACED)
    assert [intent.id for intent in journal.mined_since(CHAIN, ACCOUNT, 3)] == [reverted.id]
    assert journal.mined_since(CHAIN, ACCOUNT, 4) == []


def test_unfinished_are_ordered_by_nonce(journal: Journal) -> None:
    late = journal.add_attempt(journal.add(CHAIN, ACCOUNT, CALL, None), attempt(8))
    early = journal.add_attempt(journal.add(CHAIN, ACCOUNT, CALL, None), attempt(7, b"b"))
    abandoned = journal.add(CHAIN, ACCOUNT, CALL, None)
    assert [intent.id for intent in journal.unfinished(CHAIN, ACCOUNT)] == [early.id, late.id]
    assert [intent.id for intent in journal.never_signed(CHAIN, ACCOUNT)] == [abandoned.id]


def test_commits_are_flushed_to_disk(journal: Journal) -> None:
    assert journal._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert journal._db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


def test_what_was_signed_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from protocol.journal import Attempt, Journal\n"
        "from protocol.transactions import Call\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        f"intent = journal.add('{CHAIN}', '{ACCOUNT}', Call('0x' + '22' * 20, b'', 'x'), 'key')\n"
        "journal.add_attempt(intent, Attempt(b'h' * 32, 4, b'raw', 1, 2, 3, 4.0))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(path)], check=False, cwd=Path.cwd(), env=dict(os.environ))
    assert died.returncode == -signal.SIGKILL
    with Journal(path) as journal:
        (intent,) = journal.unfinished(CHAIN, ACCOUNT)
        assert intent.attempts[0].raw == b"raw" and intent.state is IntentState.SIGNED


def test_file_is_private(journal: Journal) -> None:
    assert journal.path.stat().st_mode & 0o777 == 0o600


def test_file_of_a_later_version_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    later = tmp_path / "later.sqlite"
    with sqlite3.connect(later) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    other = tmp_path / "other.sqlite"
    other.write_bytes(b"this is no database, and it is long enough to be looked at as one" * 40)
    for path in (later, other):
        with pytest.raises(ConfigError) as caught:
            Journal(path)
        assert caught.value.code == "C-40" and str(path) in caught.value.message
