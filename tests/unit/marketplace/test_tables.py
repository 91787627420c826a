"""The tables: made for both databases, and exact where a database would round."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

from marketplace.eventlog import from_row, to_row
from marketplace.tables import CHAIN_TABLES, AccountRow, Base, Mail, MailboxName, Nonce, open_database
from protocol.events import Position, TaskPosted, UnitFinalised
from protocol.types import NodeId, TaskId, TaskSpec, Wei

AT = Position(block_number=7, block_hash=b"\x01" * 32, timestamp=9, tx_hash=b"\x02" * 32, log_index=3)
ADDRESS = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"


@pytest.mark.parametrize("table", Base.metadata.sorted_tables, ids=str)
def test_every_table_can_be_made_in_postgresql(table: object) -> None:
    statement = str(CreateTable(table).compile(dialect=postgresql.dialect()))  # type: ignore[arg-type,no-untyped-call]
    assert "PRIMARY KEY" in statement


def test_rebuild_empties_everything_but_what_people_sent() -> None:
    kept = {mapper.class_ for mapper in Base.registry.mappers} - set(CHAIN_TABLES)
    assert kept == {Mail, MailboxName, Nonce}


@pytest.mark.parametrize("amount", [0, 1, 2**53 + 1, 2**96 - 1, 2**256 - 1])
def test_amounts_are_kept_to_the_wei(tmp_path: Path, amount: int) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'db'}")
    with Session(engine) as session:
        session.add(AccountRow(address=ADDRESS, earned=amount, refunded=0, compensated=0, withdrawn=0))
        session.commit()
    with Session(engine) as session:
        row = session.get(AccountRow, ADDRESS)
        assert row is not None
        assert row.earned == amount
    engine.dispose()


def test_events_come_back_from_their_rows() -> None:
    roots = (bytes([i]) * 32 for i in range(1, 6))
    values = (ADDRESS, *roots, 2**64 - 1, 2**96 - 1, 1, 2, *range(3, 11), True)
    spec = TaskSpec.from_abi(values)
    events = [
        TaskPosted(AT, TaskId(b"\x07" * 32), ADDRESS, Wei(2**96 - 1), spec),  # type: ignore[arg-type]
        UnitFinalised(AT, TaskId(b"\x07" * 32), 4, NodeId(5), ADDRESS, Wei(6), True),  # type: ignore[arg-type]
    ]
    rows = [to_row(event) for event in events]
    assert [from_row(row) for row in rows] == events
    assert [(row.block, row.log_index, row.task, row.node) for row in rows] == [
        (7, 3, b"\x07" * 32, None),
        (7, 3, b"\x07" * 32, 5),
    ]
