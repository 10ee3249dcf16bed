"""The goodput benchmark: its lab is one, its ratio is that of medians, nonsense is refused."""

from __future__ import annotations

import pytest

from fabric.errors import UserError
from fabric.lab.bench.goodput import COLUMNS, PROTOCOLS, RELAYS, Plan, figure, page, rows, topology
from fabric.lab.topology_file import parse_topology


def test_the_lab_has_three_equal_paths_and_a_port_for_each_protocol() -> None:
    model = parse_topology(topology("b", 4.5), "benchmark")
    assert [host.name for host in model.hosts] == ["first", *RELAYS, "last"]
    assert {link.bandwidth_bps for link in model.links} == {4_500_000}
    assert len(model.links) == 2 * len(RELAYS)
    rules = model.policy["rules"]
    assert {rule["protocol"] for rule in rules} == set(PROTOCOLS)
    assert all(rule["reply"] == rule["protocol"] for rule in rules)


def test_the_ratio_is_of_medians_and_the_page_has_every_stream() -> None:
    series = {"wide": [4.0, 2.0, 3.0], "disperse": [9.0, 6.0, 1.0]}
    found = figure(Plan(rounds=3), 4.0, series, 1.23)
    assert (found["single_p50_mbit_s"], found["disperse_p50_mbit_s"], found["ratio"]) == (3, 6, 2)
    assert [len(row) for row in rows([found])] == [len(COLUMNS)]
    assert "disperse: 9, 6, 1" in page([found])


@pytest.mark.parametrize(
    "wrong", [{"bandwidths": ()}, {"bandwidths": (0.0,)}, {"rounds": 0}, {"seconds": 0.1}]
)
def test_a_plan_of_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        Plan(**wrong)  # type: ignore[arg-type]
