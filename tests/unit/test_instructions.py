"""What an agent is told about sequence numbers, so that a successor never repeats them."""

from __future__ import annotations

from datetime import UTC, datetime

from fabric.agent.session import Session
from fabric.host.control.instructions import first_sequence
from fabric.wire.packet import SEQUENCES_PER_MS, Packet
from tests.unit.inner_packets import tcp_packet
from tests.unit.test_agent import configure

INNER = tcp_packet(b"x")
NOW_US = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1e6)


def test_a_guest_a_millisecond_younger_counts_above_its_predecessor() -> None:
    assert first_sequence(NOW_US + 1000) - first_sequence(NOW_US) == SEQUENCES_PER_MS


def test_numbers_stay_exact_where_json_numbers_are_floats() -> None:
    in_thirty_years = NOW_US + 30 * 365 * 86_400 * 1_000_000
    number = first_sequence(in_thirty_years)
    assert int(float(number)) == number


def test_a_clock_that_was_never_set_starts_at_one() -> None:
    assert first_sequence(0) == 1


def test_the_agent_begins_where_it_is_told_to() -> None:
    told = configure(protocol=0, first_sequence=first_sequence(NOW_US))
    forwarder = Session.begin(told, NOW_US).forwarder
    actions = forwarder.from_application([INNER, INNER], NOW_US, 2)
    sent = [Packet.parse(d).header.sequence for b in actions.batches for d in b.datagrams()]
    assert sent == [first_sequence(NOW_US), first_sequence(NOW_US) + 1]
