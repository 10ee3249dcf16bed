"""What the documentation shows must work."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest

from fabric.host.config import HostConfig
from fabric.host.guest.lifecycle import diagram
from fabric.routing.topology import Topology

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("images/*.md")])


def test_the_example_configuration_of_a_real_machine_loads() -> None:
    text = (ROOT / "docs/operating.md").read_text()
    block = re.search(r"^ {7}\{\n.*?^ {7}\}\n", text, re.MULTILINE | re.DOTALL)
    assert block
    config = HostConfig.from_json(json.loads(textwrap.dedent(block[0])))
    assert Topology.from_json(config.topology).neighbours(config.node)[0].address == "192.0.2.20"


def test_the_picture_of_a_guests_life_is_that_of_the_table() -> None:
    drawn = re.search(r"```mermaid\n(.*?)```", (ROOT / "docs/lifecycle.md").read_text(), re.DOTALL)
    assert drawn is not None and drawn[1] == diagram()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page}: {target}"
