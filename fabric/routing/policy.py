"""Which protocol a connection gets, and why.

Owns: Policy and the selection. May import: fabric.errors, fabric.wire, and in routing: needs,
facts, rules, policy_document (it runs in the guest).

Order: the program's declared protocol, its declared need, the first matching rule, the class its
DSCP names (RFC 4594), and else ``shortest``.
"""

from __future__ import annotations

from fabric.errors import ConfigError
from fabric.routing.facts import ApplicationFacts
from fabric.routing.needs import (
    DEFAULT_NEED,
    DSCP_NEEDS,
    NEEDS,
    PROTOCOL_NAMES,
    dscp_class,
    protocol_id,
)
from fabric.routing.policy_document import place, read_rules
from fabric.routing.rules import Rule
from fabric.wire.fact import Fact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["ApplicationFacts", "Policy", "Rule", "Selection", "select"]


class Selection(Fact):
    """A chosen protocol and the line that chose it."""

    protocol: int
    name: str
    need: str
    """The need that was served; empty where a protocol was named outright."""
    rule: str
    """``declared-protocol``, ``declared-need``, a policy rule's name, ``rfc4594:CLASS`` or
    ``default``."""
    reason: str
    """For people."""
    reply_protocol: int | None = None
    """Of the direction back, where it shall be another one."""


class Policy(Fact):
    """An ordered list of rules; the first that matches decides."""

    rules: tuple[Rule, ...] = ()
    protocols: dict[int, str] = PROTOCOL_NAMES
    """Names of protocols that may be declared, the network's own ones included."""

    @classmethod
    def from_json(
        cls, document: dict[str, Any], protocols: dict[int, str] = PROTOCOL_NAMES
    ) -> Policy:
        """Build from the document of a policy file, ``{}`` meaning no rules.

        Raises ConfigError listing every mistake with its place.
        """
        rules, problems = read_rules(document, protocols)
        if problems:
            lines = tuple(f"{place(path)}: {message}" for path, message in problems)
            raise ConfigError("policy is not valid", lines, cure="see docs/protocols.md")
        return cls(rules, protocols)

    def tiers(self) -> set[str]:
        """Every spawn tier a rule names."""
        return {rule.tier for rule in self.rules if rule.tier}

    def tier(self, facts: ApplicationFacts) -> str:
        """The spawn tier of the first rule that matches; empty: it, or no rule, names one."""
        return next((rule.tier for rule in self.rules if rule.matches(facts)), "")

    def protects(self, facts: ApplicationFacts) -> bool:
        """Whether the first rule that matches wants guests on alternate paths."""
        return next((rule.protect for rule in self.rules if rule.matches(facts)), False)


def select(policy: Policy, facts: ApplicationFacts) -> Selection:
    """The protocol for a connection. Never fails: an unknown declaration is passed over, and the
    reason says so."""
    ignored = ""
    if facts.declared_protocol:
        number = protocol_id(facts.declared_protocol, policy.protocols)
        if number is not None:
            reason = f"the program was started with protocol {facts.declared_protocol}"
            return _selection(policy, number, "", "declared-protocol", reason)
        ignored += f"; declared protocol {facts.declared_protocol!r} is unknown, passed over"
    if facts.declared_need:
        if facts.declared_need in NEEDS:
            reason = f"the program was started with need {facts.declared_need}{ignored}"
            need = facts.declared_need
            return _selection(policy, NEEDS[need], need, "declared-need", reason)
        ignored += f"; declared need {facts.declared_need!r} is unknown, passed over"
    for rule in policy.rules:
        if rule.matches(facts):
            reason = f"{_why(rule, facts)}{ignored}"
            return _selection(policy, rule.protocol, rule.need, rule.name, reason, rule.reply)
    name = dscp_class(facts.dscp)
    if name is not None:
        need, family = DSCP_NEEDS[name]
        reason = f"DSCP {name.upper()} ({facts.dscp}) is {family} in RFC 4594{ignored}"
        return _selection(policy, NEEDS[need], need, f"rfc4594:{name.upper()}", reason)
    reason = f"nothing was declared, no rule matches, DSCP {facts.dscp} asks for nothing{ignored}"
    return _selection(policy, NEEDS[DEFAULT_NEED], DEFAULT_NEED, "default", reason)


def _selection(
    policy: Policy, protocol: int, need: str, rule: str, reason: str, reply: int | None = None
) -> Selection:
    name = policy.protocols.get(protocol, str(protocol))
    return Selection(protocol, name, need, rule, reason, reply)


def _why(rule: Rule, facts: ApplicationFacts) -> str:
    return f"policy rule {rule.name!r} matches {rule.seen(facts) or 'everything'}"
