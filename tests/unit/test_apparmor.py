"""Our lines in libvirt's AppArmor abstraction: where they go, and that they are enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fabric.errors import EnvironmentFault
from fabric.host.config import TEMPLATE_DIR
from fabric.host.guest.template import Draft
from fabric.host.vmm.apparmor import BEGIN, END, RULES, AppArmor

OTHERS = "# the site's own\n/srv/firmware/** r,\n"


@pytest.fixture
def machine(tmp_path: Path) -> AppArmor:
    """A Debian 12 with AppArmor, as far as we look at it."""
    made = AppArmor(tmp_path / "enabled", tmp_path / "apparmor.d")
    made.enabled.write_text("Y\n")
    (made.profiles / "abstractions").mkdir(parents=True)
    (made.profiles / "abstractions/libvirt-qemu").write_text(
        "  /dev/kvm rw,\n  #include <local/abstractions/libvirt-qemu>\n"
    )
    made.local.parent.mkdir(parents=True)
    made.local.touch()
    return made


def test_our_lines_are_added_once(machine: AppArmor) -> None:
    assert RULES[0] in machine.problem()
    assert machine.ensure()
    assert machine.problem() == ""
    text = machine.local.read_text()
    assert text == "\n".join((BEGIN, *RULES, END, ""))
    assert not machine.ensure()
    assert machine.local.read_text() == text


def test_what_others_wrote_stays(machine: AppArmor) -> None:
    machine.local.write_text(OTHERS.rstrip("\n"))
    machine.ensure()
    assert machine.local.read_text().startswith(OTHERS + BEGIN)


def test_lines_of_an_earlier_version_are_replaced(machine: AppArmor) -> None:
    machine.local.write_text(f"{OTHERS}{BEGIN}\n/old/place rw,\n{END}\n/srv/more r,\n")
    assert machine.ensure()
    text = machine.local.read_text()
    assert "/old/place" not in text and text.count(BEGIN) == 1
    assert text.startswith(f"{OTHERS}/srv/more r,\n")


@pytest.mark.parametrize("include", ["include <local/abstractions/libvirt-qemu>", None])
def test_the_abstraction_must_include_the_sites_file(
    machine: AppArmor, include: str | None
) -> None:
    (machine.profiles / "abstractions/libvirt-qemu").write_text(f"  {include or '/dev/kvm rw,'}\n")
    if include:
        assert machine.ensure()
    else:
        with pytest.raises(EnvironmentFault, match="does not include"):
            machine.ensure()


@pytest.mark.parametrize("missing", ["enabled", "off", "profiles"])
def test_without_apparmor_nothing_is_written(machine: AppArmor, missing: str) -> None:
    if missing == "enabled":
        machine = replace(machine, enabled=machine.enabled.with_name("none"))
    elif missing == "off":
        machine.enabled.write_text("N\n")
    else:
        machine = replace(machine, profiles=machine.profiles / "none")
    assert not machine.ensure()
    assert machine.problem() == ""
    assert machine.local.exists() == (missing != "profiles")


def test_the_rules_name_every_file_qemu_uses_of_a_template() -> None:
    (rule,) = RULES
    pattern, permissions = rule.rstrip(",").split()
    directory, _, names = pattern.rpartition("/")
    assert directory == f"{TEMPLATE_DIR}/*"
    draft = Draft(Path("draft"))
    assert set(names.strip("{}").split(",")) == {"memory", draft.memory.name, draft.state.name}
    assert permissions == "rw"
