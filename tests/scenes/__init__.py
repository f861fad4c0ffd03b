"""The fault scenes: for each row of faults (`rows`), what happens, at the level of bytes, on real sockets.

A scene reads like its row:

    @scene(
        "F72",
        "A client that leaves while it waits for the first token frees the pod at once",
        promise=Promise.COST,
        without=(Without(CANCELLATION, red="the pod works on"),),
    )
    async def who_leaves_frees_the_pod(stage: Stage) -> None:
        pod = await stage.pod(Hang)
        await stage.gateway(pod)
        client = await stage.asks(stream=True)
        await stage.until(lambda: pod.requests, "the pod was not asked")
        client.leave()
        await stage.until(pod.peer_left.is_set, "the pod works on for nobody")

It is played as it is, when it must hold, and once without each of the defences it names (`defences`), when it must fail
with the text it names. What must be true after every scene is in `afterwards`, and looked at each time. Deadlines are
reached by leaps of the gateway's clock, with the product's own figures; nothing is judged by the time it takes.
`make scenes` plays all and writes docs/faults.md.
"""
