"""Whoever is killed, at whatever named step: the application is served, and nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fabric.host.control import messages
from fabric.host.control.connections import OPENING_PATIENCE
from fabric.host.faults import Step
from fabric.host.guest import adoption, copies, endings, pool
from fabric.host.guest import guest as guest_module
from tests.unit.host_world import Life, Machine, machine, until
from tests.unit.test_orchestrator import syn

SPAWN = (
    Step.CLAIMED, Step.ATTACHED, Step.INTENDED, Step.CREATED, Step.SECURED, Step.STARTED,
    Step.JOINED, Step.REACHED, Step.PUSHED, Step.GREETED, Step.CONFIGURED, Step.READY,
    Step.RELEASED, Step.RECORDED, Step.STEERED,
)  # fmt: skip
COPY = (Step.ARMED, Step.RESUMED)
KEPT_READY = {"prepared": (Step.CONFIGURED, Step.RESUMED, Step.READY), "warm": (Step.CONFIGURED,)}
"""Steps of a request that is served out of a pool."""
TEARDOWN = (
    Step.UNSTEERED, Step.FORGOTTEN, Step.ENDING, Step.DESTROYED, Step.DISOWNED, Step.DETACHED,
)  # fmt: skip
AWAY = 0.1
"""Seconds until somebody has started libvirtd again."""


def orchestrator(_made: Machine, life: Life) -> None:
    life.kill()


def qemu(made: Machine, life: Life) -> None:
    for guest in life.host.manager.guests():
        if guest.name in made.hypervisor.domains:
            made.hypervisor.crash(guest.name)


def agent(made: Machine, life: Life) -> None:
    made.agents.dead.update(guest.identity.address for guest in life.host.manager.guests())


def libvirtd(made: Machine, _life: Life) -> None:
    made.hypervisor.down = True
    loop = made.hypervisor.loop
    loop.call_soon_threadsafe(loop.call_later, AWAY, made.hypervisor.come_back)


Victim = Callable[[Machine, Life], None]
VICTIMS: tuple[Victim, ...] = (orchestrator, qemu, agent, libvirtd)


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(guest_module.AGENT_DEADLINES, "tcg", 0.1)
    monkeypatch.setattr(endings, "RETRY", 0.02)
    monkeypatch.setattr(messages, "ANSWER_DEADLINE", 0.05)
    monkeypatch.setattr(copies, "COPY_DEADLINES", {"kvm": 0.1, "tcg": 0.1})
    monkeypatch.setattr(pool, "RETRY", 0.05)


def strike_at(life: Life, step: Step, victim: Victim) -> asyncio.Event:
    """Kill when the step is reached for the first time; set when it was."""
    struck, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_step(reached: Step) -> None:
        if reached is step and not struck.is_set():
            life.on_step = lambda _step: None
            victim(life.machine, life)
            loop.call_soon_threadsafe(struck.set)

    life.on_step = on_step
    return struck


async def successor(life: Life) -> Life:
    """Whoever serves the host now: another life, if that one was killed."""
    if not life.dead:
        return life
    await life.bury()
    after = Life(life.machine)
    await after.start()
    return after


async def application(life: Life) -> None:
    """Sends its first packet again until it is served; told no, it tries again."""
    async with asyncio.timeout(15):
        while not life.works():
            if not life.connections():
                life.miss(syn())
            await asyncio.sleep(0.01)
            life.tick()


def story(directory: Path, tell: Callable[[Machine], Awaitable[None]], tier: str = "cold") -> None:
    async def within() -> None:
        async with asyncio.timeout(40), machine(directory, tier) as made:
            await tell(made)
            assert made.left() == []

    asyncio.run(within())


def names(something: object) -> str:
    if isinstance(something, Step):
        return str(something.value)
    return something if isinstance(something, str) else getattr(something, "__name__", "")


@pytest.mark.parametrize("victim", VICTIMS, ids=names)
@pytest.mark.parametrize(
    ("tier", "step"),
    [
        *(("cold", step) for step in SPAWN),
        *(("template", step) for step in COPY),
        *((tier, step) for tier, steps in KEPT_READY.items() for step in steps),
    ],
    ids=names,
)
def test_killed_at_a_step_of_a_spawn(tmp_path: Path, tier: str, step: Step, victim: Victim) -> None:
    async def tell(made: Machine) -> None:
        life = Life(made)
        await life.start()
        struck = strike_at(life, step, victim)
        life.miss(syn())
        await struck.wait()
        life = await successor(life)
        await application(life)
        assert made.answers == [], "it never hears of it"
        await in_order(made, life)
        await life.host.close()

    story(tmp_path, tell, tier)


async def in_order(made: Machine, life: Life) -> None:
    """Whatever failed is gone, and nothing differs from what is known."""
    manager = life.host.manager
    await until(lambda: manager.alive() == 1 and all(manager.kept_ready().values()))
    await until(lambda: set(made.hypervisor.domains) == {g.name for g in manager.guests()})
    assert await life.host.housekeeper.run() == []
    assert life.works()


def test_with_libvirtd_away_for_long_the_application_gets_a_clean_error(tmp_path: Path) -> None:
    async def tell(made: Machine) -> None:
        life = Life(made)
        await life.start()
        made.hypervisor.patience, made.hypervisor.down = 0.0, True
        life.miss(syn())
        await until(lambda: bool(made.answers))
        assert life.told("refused")[0]["cause"] == "spawn-failed"
        assert "is down" in life.told("refused")[0]["why"]
        made.hypervisor.come_back()
        await application(life)
        await in_order(made, life)
        await life.host.close()

    story(tmp_path, tell)


@pytest.mark.parametrize("victim", VICTIMS, ids=names)
@pytest.mark.parametrize("step", TEARDOWN, ids=names)
def test_killed_at_a_step_of_a_teardown(tmp_path: Path, step: Step, victim: Victim) -> None:
    async def tell(made: Machine) -> None:
        life = Life(made)
        await life.start()
        life.miss(syn())
        await until(life.works)
        struck = strike_at(life, step, victim)
        (connection,) = life.connections()
        ending = asyncio.create_task(life.host.orchestrator.end(connection, "asked"))
        await struck.wait()
        life = await successor(life)
        # Killed before its record was gone, the connection goes on, until nobody uses it.
        async with asyncio.timeout(15):
            while made.left():
                life.tick(int(OPENING_PATIENCE) if life.works() else 1)
                await asyncio.sleep(0.01)
        assert await life.host.housekeeper.run() == []
        await life.host.close()
        await asyncio.gather(ending, return_exceptions=True)

    story(tmp_path, tell)


@pytest.mark.parametrize("victim", VICTIMS, ids=names)
@pytest.mark.parametrize("step", [Step.CLAIMED, Step.JOINED], ids=names)
def test_killed_while_it_adopts(
    tmp_path: Path, step: Step, victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(adoption.ADOPTION_DEADLINES, "tcg", 0.2)

    async def tell(made: Machine) -> None:
        life = Life(made)
        await life.start()
        life.miss(syn())
        await until(life.works)
        (connection,) = life.connections()
        await life.bury()
        life = Life(made)
        struck = strike_at(life, step, victim)
        starting = asyncio.create_task(life.start())
        await struck.wait()
        if not life.dead:
            await starting
        life = await successor(life)
        await application(life)
        assert [c.id for c in life.connections()] == [connection.id]
        await life.host.close()
        await asyncio.gather(starting, return_exceptions=True)

    story(tmp_path, tell)


def test_every_step_is_tried() -> None:
    assert {*SPAWN, *COPY, *TEARDOWN} == set(Step)
