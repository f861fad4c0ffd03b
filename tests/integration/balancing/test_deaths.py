"""What is a pod's death, and what only looks like one; and that nobody waits for a pod when this replica goes."""

from gateway.core.fleet import PodLoad, PodState
from tests.fakes import STREAM_HEAD, Die, Hang, Reset, ScriptedPod, Step, chunk
from tests.integration.balancing.scenes import GOOD, TOKEN, Scene, pods, scene
from tests.turns import within

SICK = b"503 Service Unavailable"
ENGINE_DEAD = chunk(b'data: {"error": {"message": "EngineCore encountered an issue.", "type": "x", "code": 500}}\n\n')
DONE = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


async def was_asked(found: Scene, pod: ScriptedPod) -> None:
    """Wait until the gateway has asked the pod how it is."""
    await found.until(lambda: b"/health" in pod.asked)


async def is_known(found: Scene, place: int) -> None:
    """Wait until the gateway knows how the pod is."""
    await found.gateway.probes.ask(found.pod(place))


async def test_an_engine_that_dies_in_the_midst_of_a_stream_is_a_death() -> None:
    given = pods(3, STREAM_HEAD, TOKEN, ENGINE_DEAD, DONE)
    async with given[0], given[1], given[2], scene(given) as found:
        for pod in given:
            pod.health = SICK
        for _ in range(2):
            assert b"EngineCore" in (await found.ask(stream=True)).body
            place = await found.arrival(given)
            await was_asked(found, given[place])
            await is_known(found, place)
        came = await found.ask(stream=True)
        assert came.error["code"] == "request_quarantined"
        assert sum(len(pod.requests) for pod in given) == 2


async def test_an_error_in_a_stream_of_a_pod_that_is_well_is_none() -> None:
    given = pods(3, STREAM_HEAD, TOKEN, ENGINE_DEAD, DONE)
    async with given[0], given[1], given[2], scene(given) as found:
        for _ in range(3):
            assert (await found.ask(stream=True)).status == 200
            place = await found.arrival(given)
            await was_asked(found, given[place])
            await is_known(found, place)
        assert found.quarantined() == 0


async def test_a_container_that_restarts_in_its_pod_and_dies_again_has_died_twice() -> None:
    """The only pod of its pool would be killed by every repetition."""
    deadly = True

    def script_of(sent: bytes) -> tuple[Step, ...]:
        return (Die,) if deadly else (GOOD,)

    pod = ScriptedPod(script_of=script_of)
    async with pod, scene([pod]) as found:
        for said in ("upstream_disconnected", "request_quarantined"):
            assert (await found.ask()).error["code"] == said
            await pod.start()
            found.leap(20.0)
        deadly = False
        assert (await found.ask()).error["code"] == "request_quarantined"
        assert len(pod.requests) == 2


async def test_a_death_of_which_is_heard_only_later_that_it_was_meant_is_none() -> None:
    """The connections of a pod may break before the watch has told that it terminates."""
    given = pods(3, Reset)
    async with given[0], given[1], given[2], scene(given) as found:
        for pod in given:
            pod.health = b""
        asking = found.asking()
        for _ in range(2):
            place = await found.arrival(given)
            await was_asked(found, given[place])
            await found.becomes(place, PodState.DRAINING)
            given[place].die()
        assert (await asking).error["code"] == "upstream_disconnected"
        for pod in given:
            pod.scripts = [[GOOD]]
        assert (await found.ask()).status == 200
        assert found.quarantined() == 0


async def test_the_same_holds_for_streams_that_had_begun() -> None:
    given = pods(3, STREAM_HEAD, TOKEN, Reset)
    async with given[0], given[1], given[2], scene(given) as found:
        for pod in given:
            pod.health = b""
        for _ in range(2):
            assert b"upstream_reset" in (await found.ask(stream=True)).body
            place = await found.arrival(given)
            await was_asked(found, given[place])
            await found.becomes(place, PodState.DRAINING)
            given[place].die()
            await is_known(found, place)
        assert (await found.ask(stream=True)).status == 200
        assert found.quarantined() == 0


async def test_when_this_replica_goes_a_second_attempt_waits_for_no_room() -> None:
    """It would be told of the end by nobody: those who wait were turned away before."""
    given = [ScriptedPod([[Reset]], health=b""), ScriptedPod([[Hang]])]
    async with given[0], given[1], scene(given, pool={"queue_wait_seconds": 60}) as found:
        asking = found.asking()
        place = await found.arrival(given)
        if place == 1:
            # It is the other one's turn.
            hangs, asking = asking, found.asking()
            place = await found.arrival(given)
        else:
            hangs = None
        assert place == 0
        await was_asked(found, given[0])
        full = PodLoad(in_flight=1000)
        found.gateway.balancer.load_read(found.pod(1).uid, full, found.clock() + 60)
        found.gateway.pipeline.end_all()
        given[0].die()
        async with within(5):
            came = await asking
        assert (came.status, came.error["code"]) == (503, "draining")
        if hangs is not None:
            await hangs
