"""`poolgate chat`: one chat through a running gateway."""

import asyncio
import json
import sys
from typing import Annotated

import typer

from gateway.cli.refused import Refused

URL = "http://127.0.0.1:8000"
MAX_PROMPT_BYTES = 8 << 20


def chat(
    prompt: Annotated[str | None, typer.Argument(help="What to say; - or none: it comes on stdin.")] = None,
    url: Annotated[str, typer.Option(help="The gateway's public port, with or without /v1.")] = URL,
    key: Annotated[str | None, typer.Option(envvar="POOLGATE_API_KEY", help="An API key.", show_envvar=True)] = None,
    model: Annotated[str | None, typer.Option(help="The model; none: the first that the gateway lists.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object at the end.")] = False,
) -> None:
    """One streamed chat: the answer on stdout; time to first token, tokens and pod on stderr. Exit 1 if it fails."""
    from gateway.cli import chat_client, chat_text

    said = _prompt(prompt)
    messages = [] if system is None else [{"role": "system", "content": system}]
    body = {"messages": [*messages, {"role": "user", "content": said}]}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens  # type: ignore[assignment]  # a body holds values of every kind
    out = chat_text.Printer(quiet=as_json)
    try:
        talk = asyncio.run(chat_text.talk(url, key, model, body, out))
    except chat_client.Unanswered as error:
        out.end()
        typer.echo(f"poolgate: {out.shown(str(error))}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        out.end()
        raise
    if as_json:
        typer.echo(json.dumps(talk.told(), indent=2))
    else:
        out.end()
        typer.echo(out.shown(talk.summary()), err=True)


def _prompt(told: str | None) -> str:
    if told is not None and told != "-":
        return told
    if told is None and sys.stdin.isatty():
        raise Refused('say something: poolgate chat "hi", or send the text to stdin')
    text = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(text) > MAX_PROMPT_BYTES:
        raise Refused(f"the text on stdin is longer than {MAX_PROMPT_BYTES >> 20} MiB")
    if not text.strip():
        raise Refused("no text came on stdin")
    return text.decode("utf-8", "replace")
