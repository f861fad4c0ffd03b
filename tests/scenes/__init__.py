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

To add one:

1. Find its row in `rows`, and the module of its section. A second scene of a row bears a letter: F72b.
2. The sentence says what is shown, in the words of docs/faults.md, beside the row's title.
3. `stage` has what there is to put up (`gateway`, `pod`, `api_server`, `valkey`) and to do (`leap`, `until`); a client
   speaks bytes and expects answers; `says` has vLLM's words; the steps of a pod are those of `tests.fakes`.
4. A defence is a `Defence` in `defences`, in the module of the same name: a careless subclass, or a bound without an
   end. What cannot be replaced so wants an argument, a method or a class attribute in the product, never a patch.
5. Without a defence what does not come is waited for, for a second: expect the telling thing early, and in `red` name
   the reason, so that another failure is not taken for it.
6. `.venv/bin/python -m pytest tests/scenes -k F72`; then `make scenes`, which plays all and writes docs/faults.md.
"""
