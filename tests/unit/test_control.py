"""Messages between host and agent survive any chunking, and nonsense is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.wire import control
from fabric.wire.control import Decoder, Message, decode, encode
from fabric.wire.errors import ControlInvalid

MESSAGES: list[Message] = [
    control.Configure(
        connection=2**63 + 1,
        lab="d",
        host="h1",
        node=1,
        guest=3,
        role="ingress",
        source_node=1,
        destination_node=4,
        table={"version": 1},
        interfaces={"172.31.0.1": 1},
        port=7704,
        overlay_mtu=1400,
        requested_at_us=10,
        host_now_us=20,
    ),
    control.InstallTable({"version": 2}),
    control.Query("traces", 5),
    control.Hello("ab", "3.11.2", 12),
    control.Ready(1, None, "", "", "r", "why", 100),
    control.AgentEvent("first-packet", {"direction": "in"}, 5),
    control.Counters({"packets_in": 3}, 99, False),
    control.Traces(["00ff"]),
    control.Identity(2**63 + 1, None, 7, "ab"),
    control.Quiesce(),
    control.Quiesced([]),
    control.Identify("02:fa:00:00:04:01", "100.115.0.2", 1500, 1400, "ab", "cd", 1),
    control.Identified("02:fa:00:00:04:01", "100.115.0.2", "ab", "cd"),
]


@given(st.lists(st.sampled_from(MESSAGES), max_size=6), st.integers(1, 50))
def test_messages_survive_any_chunking(messages: list[Message], step: int) -> None:
    data = b"".join(map(encode, messages))
    decoder = Decoder()
    got = [m for at in range(0, len(data), step) for m in decoder.feed(data[at : at + step])]
    assert got == messages


def test_an_error_costs_one_line_only() -> None:
    decoder = Decoder()
    good = encode(MESSAGES[2])
    with pytest.raises(ControlInvalid):
        decoder.feed(good + b"nonsense\n" + good)
    assert decoder.feed(b"") == [MESSAGES[2], MESSAGES[2]]


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"{}",
        b'{"type":"Destroy"}',
        b'{"type":"Query"}',
        b'{"type":["Query"]}',
        b'{"type":"Query","what":5}',
        b'{"type":"Query","what":"traces","last":true}',
        b'{"type":"Counters","counters":[],"last_activity_us":1,"closing":false}',
        b"\xff",
    ],
)
def test_nonsense_is_named(line: bytes) -> None:
    with pytest.raises(ControlInvalid):
        decode(line)


def test_fields_of_a_newer_host_are_ignored() -> None:
    document = {"type": "Query", "what": "counters", "last": 1, "colour": "red"}
    assert decode(json.dumps(document).encode()) == control.Query("counters", 1)


def test_a_line_without_end_does_not_fill_memory() -> None:
    decoder = Decoder(max_line=100)
    with pytest.raises(ControlInvalid, match="at most 100"):
        decoder.feed(b"x" * 101)
    assert decoder.feed(encode(MESSAGES[2])) == [MESSAGES[2]]


def test_facts_are_immutable_and_typed_by_field() -> None:
    query = control.Query("counters")
    with pytest.raises(AttributeError):
        query.what = "traces"  # type: ignore[misc]
    with pytest.raises(TypeError, match="missing what"):
        control.Query()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="colour"):
        control.Query("counters", colour=1)  # type: ignore[call-arg]
    assert query != control.Query("traces")
    assert repr(query) == "Query(what='counters', last=256)"
