"""Duplicates and disorder at the egress: what is passed on, what waits, what is eliminated."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fabric.routing.choice import choose
from fabric.routing.recovery import HELD_BYTES, HELD_PACKETS, RESET_US, WINDOW, Order, Seen
from fabric.routing.table import NextHop
from fabric.wire.packet import SEQUENCES_PER_MS

HOLD = 50_000


@given(st.lists(st.integers(1, 300), max_size=400))
def test_every_number_is_fresh_once(numbers: list[int]) -> None:
    seen, known = Seen(), set[int]()
    for number in numbers:
        assert seen.fresh(number, 0) == (number not in known)
        known.add(number)


def test_a_leap_forward_is_believed_and_what_lies_far_behind_is_a_copy() -> None:
    seen = Seen()
    assert seen.fresh(5, 0)
    assert seen.fresh(5 + 10 * WINDOW, 0)
    assert not seen.fresh(6, 0)
    assert seen.fresh(5 + 9 * WINDOW + 1, 0)
    assert not seen.fresh(5 + 9 * WINDOW, 0)


def test_after_silence_a_sender_may_begin_anew() -> None:
    seen = Seen()
    assert seen.fresh(10**6, 0)
    assert not seen.fresh(1, RESET_US)
    assert seen.fresh(1, RESET_US + 1)
    assert not seen.fresh(1, RESET_US + 2)
    assert seen.fresh(2, RESET_US + 3)


def pushed(order: Order, *numbers: int, at: int = 0) -> list[int]:
    return [int(p) for n in numbers for p in order.push(n, b"%d" % n, at)]


@given(st.permutations(range(1, 30)))
def test_any_order_becomes_the_right_one(numbers: list[int]) -> None:
    order = Order(HOLD)
    assert pushed(order, *numbers) == list(range(1, 30))
    assert order.deadline() is None
    assert len(order) == 0


def test_nobody_waits_longer_than_the_hold_time() -> None:
    order = Order(HOLD)
    assert pushed(order, 1, 3, at=0) == [1]
    assert pushed(order, 6, at=20_000) == []
    assert order.deadline() == HOLD
    assert list(order.overdue(HOLD - 1)) == []
    assert list(order.overdue(HOLD)) == [b"3"]
    assert order.deadline() == 20_000 + HOLD
    assert list(order.overdue(20_000 + HOLD)) == [b"6"]
    assert pushed(order, 2, 7) == [2, 7], "late is better than never"
    assert (order.waited, order.late) == (2, 1)


@given(seed=st.integers(0, 2**32), loss=st.sampled_from([0.0, 0.1, 0.5]))
def test_whatever_is_lost_the_rest_comes_once_in_order_and_in_time(seed: int, loss: float) -> None:
    rng = random.Random(seed)
    arrivals = sorted(
        (sent * 100 + rng.randrange(HOLD // 2), sent)
        for sent in range(1, 80)
        if rng.random() > loss
    )
    order, got, now = Order(HOLD), list[tuple[int, int]](), 0
    for now, number in arrivals:
        while (due := order.deadline()) is not None and due <= now:
            got += [(int(p), due) for p in order.overdue(due)]
        got += [(p, now) for p in pushed(order, number, at=now)]
    while (due := order.deadline()) is not None:
        got += [(int(p), due) for p in order.overdue(due)]
    numbers = [number for number, _ in got]
    assert numbers == sorted(number for _, number in arrivals)
    came = {number: at for at, number in arrivals}
    assert all(left - came[number] <= HOLD for number, left in got)


def test_memory_is_bounded_whatever_is_missing() -> None:
    order = Order(HOLD)
    got = pushed(order, *range(2, HELD_PACKETS + 3))
    assert got == list(range(2, HELD_PACKETS + 3)), "with one too many, number 1 is given up"
    order, big = Order(HOLD), bytes(HELD_BYTES // 4)
    released = [n for n in range(2, 8) for _ in order.push(n, big, 0)]
    assert len(released) == 6


def test_a_flow_is_in_order_from_its_first_packet_whatever_its_number() -> None:
    begin = 1 + 10**6 * SEQUENCES_PER_MS
    order = Order(HOLD)
    assert pushed(order, begin + 2, begin) == [begin]
    assert pushed(order, begin + 1) == [begin + 1, begin + 2]


def test_the_middle_of_a_flow_waits_for_nobody() -> None:
    middle = 5000 + 10**6 * SEQUENCES_PER_MS
    assert pushed(Order(HOLD), middle, middle + 2, middle + 1) == [middle, middle + 1, middle + 2]


def test_a_replaced_sender_is_waited_for_by_nobody_and_is_in_order_again() -> None:
    begin = 1 + 10**6 * SEQUENCES_PER_MS
    later = begin + 700 * SEQUENCES_PER_MS
    order = Order(HOLD)
    assert pushed(order, begin, begin + 2) == [begin]
    assert pushed(order, later + 1, later) == [begin + 2, later, later + 1]
    assert pushed(order, begin + 1, later + 2) == [begin + 1, later + 2], "the last of the old one"


def test_a_sender_whose_clock_was_set_back_is_in_order_again() -> None:
    order = Order(HOLD)
    pushed(order, 1 + 10**6 * SEQUENCES_PER_MS)
    assert pushed(order, 1, at=RESET_US + 1) == [1]
    assert pushed(order, 3, 2, at=RESET_US + 2) == [2, 3]


def test_packets_may_be_repeated_by_the_network() -> None:
    order = Order(HOLD)
    assert pushed(order, 2, 2, 1) == [1, 2]


# -- equal next hops -------------------------------------------------------------------------------


def hops(*nodes: int) -> list[NextHop]:
    return [NextHop(node, f"172.31.0.{node}", 1, 1500, 1) for node in nodes]


def test_only_the_connections_of_a_lost_hop_move() -> None:
    moved = 0
    for connection in range(300):
        before = choose(hops(2, 3, 4), connection, 1)
        after = choose(hops(2, 4), connection, 1)
        assert before.node == 3 or before == after
        moved += before != after
    assert 60 < moved < 140


def test_hosts_in_a_row_do_not_choose_alike() -> None:
    pairs = [
        (choose(hops(2, 3), connection, 1).node, choose(hops(2, 3), connection, 9).node)
        for connection in range(400)
    ]
    assert all(60 < pairs.count((one, two)) < 140 for one in (2, 3) for two in (2, 3))


def test_parallel_links_are_told_apart() -> None:
    links = [NextHop(2, f"172.31.0.{n}", n, 1500, 1) for n in (1, 2)]
    used = [choose(links, connection, 1).interface for connection in range(300)]
    assert 100 < used.count(1) < 200
