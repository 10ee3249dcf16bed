"""The Wireshark dissector, an implementation of its own, reads the published vectors as we do."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from fabric.wire.packet import Packet
from tests.tshark import dissect

ROOT = Path(__file__).parent.parent.parent
VECTORS = json.loads((ROOT / "tests/vectors/packets.json").read_text())
FIRST = Packet.parse(bytes.fromhex(VECTORS[0]["datagram"]))
LATER = {"path_number", "path_length", "treatment", "reply_difference"}
"""Fields that the oldest vectors do not mention."""
HEADER = [name for name in FIRST.header.names if name != "length"]
RECORD = FIRST.records[0].names

pytestmark = pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")


def capture(datagrams: list[bytes]) -> bytes:
    """A pcap file (link type raw IPv4) of UDP datagrams to the underlay port."""
    frames = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 228)]
    for number, datagram in enumerate(datagrams):
        udp = struct.pack(">HHHH", 7704, 7704, 8 + len(datagram), 0) + datagram
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), number, 0, 64, 17, 0)
        frame = ip + bytes([172, 31, 0, 1, 172, 31, 0, 2]) + udp
        frames.append(struct.pack("<IIII", number, 0, len(frame), len(frame)) + frame)
    return b"".join(frames)


def rows(datagrams: list[bytes]) -> list[dict[str, Any]]:
    names = [f"fabric.{n}" for n in HEADER] + [f"fabric.record.{n}" for n in RECORD]
    names += ["_ws.expert.message", "fabric.payload", "fabric.path.node", "udp.dstport"]
    fields = [word for name in names for word in ("-e", name)]
    shape = ("-T", "fields", "-E", "separator=|", "-E", "occurrence=a")
    shown = dissect(capture(datagrams), *shape, *fields)
    return [dict(zip(names, line.split("|"), strict=True)) for line in shown.splitlines()]


def test_the_dissector_agrees_on_every_vector() -> None:
    found = rows([bytes.fromhex(v["datagram"]) for v in VECTORS])
    assert len(found) == len(VECTORS)
    for vector, row in zip(VECTORS, found, strict=True):
        if "error" in vector:
            assert row["_ws.expert.message"], vector["name"]
            continue
        for name in HEADER:
            told = int(row[f"fabric.{name}"], 0)
            known = vector["header"].get(name, 0 if name in LATER else None)
            assert told == known, (vector["name"], name)
        path = [int(node) for node in row["fabric.path.node"].split(",") if node]
        assert path == vector.get("path", []), vector["name"]
        assert row["fabric.payload"].replace(":", "") == vector["payload"]
        for name in RECORD:
            values = [int(v, 0) for v in row[f"fabric.record.{name}"].split(",") if v]
            assert values == [record[name] for record in vector["records"]], vector["name"]


def test_the_inner_packet_is_dissected_too() -> None:
    (row,) = rows([bytes.fromhex(VECTORS[0]["datagram"])])
    assert row["udp.dstport"] == "7704,53"
