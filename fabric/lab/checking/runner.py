"""Running checks and judging what they brought.

Owns: verdicts, evidence, exit codes. May import: errors, lab.validation, lab.checking.ground. A
check that cannot be tried has failed; what it changed is put back in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fabric.errors import FabricError
from fabric.lab.checking.ground import Carried, Exchange, Ground, Sent, Stream
from fabric.lab.validation import Blackout, Check, Path, Reach

PASS, FAIL, WARN = "pass", "fail", "warn"
ALL_PASSED, SOME_FAILED, NONE_THERE, ONLY_WARNINGS = 0, 1, 2, 3
"""Exit codes of ``fabric check``."""
MESSAGES_FOR_A_PATH = 3

STEADY = 0.5
"""Seconds for which a stream must have been whole before it is cut."""
STEADY_DEADLINE = 15.0
WHOLE_AGAIN = 0.2
"""Seconds without a loss that end a blackout."""
LATE = 0.3
"""Seconds beyond a path's usual delay after which a packet that is not there counts as lost."""
PATIENCE = 3.0
"""Seconds beyond the bound that a cut lasts when nothing repairs it: what is a little too slow, or
a lot, is measured."""
RESUME_DEADLINE = 10.0
"""Seconds for the stream to flow again when the link is back."""
POLL = 0.05

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """One check's end."""

    check: Check
    verdict: str
    detail: str
    evidence: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        check = self.check
        return {
            "name": check.name,
            "kind": check.kind,
            "from": check.source,
            "to": check.target,
            "verdict": self.verdict,
            "detail": self.detail,
            "evidence": self.evidence,
        }


def run(checks: Iterable[Check], ground: Ground, progress: Progress) -> Iterator[Outcome]:
    """Each check after the other: a cut of one must not meet another."""
    for check in checks:
        progress(check.name)
        try:
            good, detail, evidence = _try(check, ground)
        except FabricError as exc:
            good, detail, evidence = False, str(exc), {}
        verdict = PASS if good else WARN if check.warning else FAIL
        yield Outcome(check, verdict, detail, evidence)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 all passed, 1 one failed, 2 there were none, 3 nothing worse than warnings."""
    verdicts = {outcome.verdict for outcome in outcomes}
    if not verdicts:
        return NONE_THERE
    return SOME_FAILED if FAIL in verdicts else ONLY_WARNINGS if WARN in verdicts else ALL_PASSED


Judged = tuple[bool, str, dict[str, Any]]


def _try(check: Check, ground: Ground) -> Judged:
    if isinstance(check, Reach):
        return _reach(check, ground)
    if isinstance(check, Path):
        return _path(check, ground)
    assert isinstance(check, Blackout), check
    return _blackout(check, ground)


def _reach(check: Reach, ground: Ground) -> Judged:
    done = ground.exchange(check, check.program, check.count, check.port)
    answered = len(done.rtts_ms)
    lost = 1 - answered / done.asked
    evidence = _evidence(done)
    what = f"{answered} of {done.asked} answered"
    if answered:
        what += (
            f", rtt min/median {min(done.rtts_ms):.1f}/{sorted(done.rtts_ms)[answered // 2]:.1f} ms"
        )
    if done.error:
        what += f": {done.error}"
    good = answered > 0 and lost <= check.loss
    return *_asked_protocol(check, done.carried, good, what), evidence


def _asked_protocol(check: Check, carried: Carried, good: bool, what: str) -> tuple[bool, str]:
    """Answers that came by another protocol than the one asked for are no success."""
    if check.protocol is not None and carried.protocol not in (check.protocol, ""):
        return False, f"{what}, but by {carried.protocol}"
    return good, f"{what}, by {carried.protocol}" if carried.protocol else what


def _path(check: Path, ground: Ground) -> Judged:
    done = ground.exchange(check, check.program, MESSAGES_FOR_A_PATH)
    evidence = _evidence(done)
    if not done.rtts_ms:
        return False, f"no answer: {done.error or 'timed out'}", evidence
    paths = done.carried.paths
    if not paths:
        return False, "no hop records of it", evidence
    wrong = [complaint for path in paths for complaint in _complaints(check, path)]
    shown = " | ".join(" > ".join(path) for path in paths)
    return *_asked_protocol(check, done.carried, not wrong, "; ".join([shown, *wrong])), evidence


def _complaints(check: Path, path: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with one way packets took: with several, each must be right."""
    if missing := [host for host in check.contains if host not in path]:
        yield f"not by {', '.join(missing)}"
    if met := [host for host in check.avoids if host in path]:
        yield f"by {', '.join(met)}"
    if check.exactly and path != check.exactly:
        yield f"not {' > '.join(check.exactly)}"


def _blackout(check: Blackout, ground: Ground) -> Judged:
    with ground.stream(check) as stream:
        evidence = {**_carried(stream.carried), "below_ms": check.below * 1000}
        usual = _steady(stream, ground)
        if usual is None:
            return False, f"the stream is not whole for {STEADY:g} s even before the cut", evidence
        if not any(_goes_over(path, check.cut) for path in stream.carried.paths):
            shown = " | ".join(" > ".join(path) for path in stream.carried.paths) or "unknown"
            return False, f"not over {'-'.join(check.cut)}: its path is {shown}", evidence
        with ground.cut(check.cut, silent=check.silent) as cut:
            cut_at = ground.now()
            cut()
            _wait_until_whole(stream, ground, cut_at, usual, check.below)
            restored_at = ground.now()
        resumed = _resumes(stream, ground, usual)
        evidence |= _measured(stream.packets(cut_at - usual), restored_at, usual)
        evidence |= {"held_ms": round((restored_at - cut_at) * 1000), "resumed": resumed}
        return *_judge(check, evidence), evidence


def _goes_over(path: tuple[str, ...], link: tuple[str, str]) -> bool:
    return any({a, b} == set(link) for a, b in pairwise(path))


def _steady(stream: Stream, ground: Ground) -> float | None:
    """The longest delay of the packets of a whole half second; None when there is none in time."""
    begin = ground.now()
    while ground.now() < begin + STEADY_DEADLINE:
        ground.sleep(POLL)
        since = ground.now() - STEADY - LATE
        window = [p for p in stream.packets(since) if p.at < since + STEADY]
        if since > begin and window and all(p.arrived is not None for p in window):
            return max(p.arrived - p.at for p in window if p.arrived is not None)
    return None


def _wait_until_whole(
    stream: Stream, ground: Ground, cut_at: float, usual: float, below: float
) -> None:
    """Until packets get through again for a while, or patience ends."""
    end = cut_at + below + PATIENCE
    while (now := ground.now()) < end:
        ground.sleep(POLL)
        decided = [p for p in stream.packets(cut_at) if p.at < now - usual - LATE]
        lately = [p for p in decided if p.at > now - usual - LATE - WHOLE_AGAIN]
        long_enough = now > cut_at + below + usual + LATE + WHOLE_AGAIN
        if long_enough and lately and all(p.arrived is not None for p in lately):
            return


def _resumes(stream: Stream, ground: Ground, usual: float) -> bool:
    begin = ground.now()
    while ground.now() < begin + RESUME_DEADLINE:
        ground.sleep(POLL)
        if any(p.arrived is not None for p in stream.packets(begin)):
            ground.sleep(usual + LATE)
            return True
    return False


def _measured(packets: Sequence[Sent], restored_at: float, usual: float) -> dict[str, Any]:
    """Loss-derived blackout (RFC 6413 section 6.5): packets lost over the rate they were sent at.

    What only arrived when the link was restored is lost, too: a kernel that waits for a neighbour
    holds the last hundred packets, and delivers them then. Packets that had no time to arrive
    before that are not counted.
    """
    sent = [p for p in packets if p.at < restored_at - usual - LATE]
    fates = [p.arrived is None or p.arrived > restored_at for p in sent]
    lost = sum(fates)
    interval = (sent[-1].at - sent[0].at) / (len(sent) - 1) if len(sent) > 1 else 0.0
    return {
        "sent": len(sent),
        "lost": lost,
        "interval_ms": round(interval * 1000, 2),
        "blackout_ms": round(lost * interval * 1000, 1),
        "repaired": bool(sent) and not fates[-1],
    }


def _judge(check: Blackout, found: dict[str, Any]) -> tuple[bool, str]:
    how = f"{'-'.join(check.cut)} {'fell silent' if check.silent else 'lost its carrier'}"
    bound = f"bound {check.below * 1000:g} ms"
    if not found["repaired"]:
        back = "flows again since" if found["resumed"] else "and does not flow now, either"
        return False, f"no repair within {found['held_ms']} ms after {how} ({bound}); {back}"
    what = f"{found['blackout_ms']:g} ms, {found['lost']} of {found['sent']} packets lost"
    return found["blackout_ms"] < check.below * 1000, f"{what}, after {how} ({bound})"


def _evidence(done: Exchange) -> dict[str, Any]:
    return {
        **_carried(done.carried),
        "asked": done.asked,
        "answered": len(done.rtts_ms),
        "rtts_ms": [round(rtt, 2) for rtt in done.rtts_ms],
        "error": done.error,
    }


def _carried(carried: Carried) -> dict[str, Any]:
    return {
        "connection": carried.connection,
        "protocol": carried.protocol,
        "paths": [list(path) for path in carried.paths],
    }
