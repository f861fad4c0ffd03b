"""Generations that answer in a dialect. The chat's own machinery makes the events; they are translated on
their way out, before they are counted for faults and sent."""

from __future__ import annotations

from loadtest.simulator import refusals
from loadtest.simulator.dialects import Dialect
from loadtest.simulator.generation import StreamedAnswer, WholeAnswer
from loadtest.simulator.sabotage import SabotagedStream, SabotagedWhole
from loadtest.simulator.wire import Reply


class TranslatedStream(StreamedAnswer):
    @property
    def dialect(self) -> Dialect:
        dialect = self.job.dialect
        assert dialect is not None  # routes choose this class for jobs that have one
        return dialect

    def begin(self) -> None:
        super().begin()
        for event in self.dialect.opening():
            super().send(event)

    def send(self, event: bytes) -> None:
        for each in self.dialect.told(event, self.counts):
            super().send(each)

    def is_last(self, event: bytes) -> bool:
        return self.dialect.is_last(event)

    def last(self) -> bytes:
        return self.dialect.last()

    def send_error(self, message: str, status: int = 500) -> None:
        events = self.dialect.failure(message, status)
        if events is None:
            super().send_error(message, status)
            return
        for event in events:
            super().send(event)
        self.exchange.end_stream()

    def _fail(self) -> None:
        if self.dialect.death() == []:
            self.exchange.hang_up()
        else:
            super()._fail()

    def _arm_comment_timer(self) -> None:
        """vLLM's keep-alive comments are for chat and completions only."""


class TranslatedWhole(WholeAnswer):
    @property
    def dialect(self) -> Dialect:
        dialect = self.job.dialect
        assert dialect is not None  # as above
        return dialect

    def send(self, reply: Reply) -> None:
        body = self.dialect.whole(reply.body, self.counts)
        super().send(Reply(reply.status, body, reply.content_type, reply.before, reply.after))

    def refuse(self, reply: Reply) -> None:
        self.exchange.answer(self.dialect.refused(reply))

    def _fail(self) -> None:
        self.refuse(refusals.engine_dead())


class SabotagedTranslatedStream(TranslatedStream, SabotagedStream):
    """Events are translated first, then counted and struck."""


class SabotagedTranslatedWhole(TranslatedWhole, SabotagedWhole):
    """The same without a stream."""
