"""All that is there before a test begins: a person's Open WebUI, its gateway, the pods; and what the pods answer."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.e2e.webui.front import Front, Tap, gateway_before, simulated_pods
from tests.e2e.webui.server import Connection, Person, Webui, open_webui

ANSWER = (
    "The sea covers most of the Earth. Its water is salt, because rain carries a little of every rock it falls on down "
    "the rivers, and the sun takes back the water alone. The moon pulls it up and lets it fall, twice a day; the wind "
    "makes the waves. Half of the air we breathe comes from what grows in it, and most of what lives there nobody has "
    "seen yet."
)
"""A simulated pod answers in random words, unless the request says what the answer must be one of."""
TITLE = "About the sea"
FOLLOW_UP = "How deep is it?"
TASKS_ANSWER = json.dumps({"title": TITLE, "tags": ["sea"], "follow_ups": [FOLLOW_UP]})
"""What all the background tasks look for, each its own part."""


@dataclass(frozen=True)
class Stage:
    webui: Webui
    front: Front
    tap: Tap
    """On the way of the tasks to the gateway."""
    ana: Person
    ben: Person


KEYS = {
    "people": {"models": ["chat", "personal"], "forwards_user": True},
    "tasks": {"models": ["tasks"], "forwards_user": True},
    "tight": {"models": ["scarce"], "requests_per_minute": 1},
}
SETTINGS = {
    "models": {name: {"to": [{"model": "chat"}]} for name in ("personal", "scarce")},
    "limits": {"rules": [{"per": "user", "model": "personal", "requests_per_day": 1}]},
}


@contextmanager
def set_up(folder: Callable[[str], Path]) -> Iterator[Stage]:
    """Three connections to one gateway, with a key each: one for people, where `personal` has a limit for each of them;
    one for background tasks; and one with a limit of its own, for `scarce`."""
    with ExitStack() as stack:
        pods = stack.enter_context(simulated_pods(chat=2, tasks=1))
        front = stack.enter_context(gateway_before(pods, folder("gateway"), KEYS, SETTINGS))
        tap = Tap(urlsplit(front.url).port or 0)
        stack.callback(tap.close)
        connections = (
            Connection(f"{front.url}/v1", front.keys["people"]),
            Connection(f"http://127.0.0.1:{tap.port}/v1", front.keys["tasks"], {"X-OpenWebUI-Task": "{{TASK}}"}),
            Connection(f"{front.url}/v1", front.keys["tight"]),
        )
        variables = {
            "ENABLE_FORWARD_USER_INFO_HEADERS": "true",
            "TASK_MODEL_EXTERNAL": "tasks",
            "DEFAULT_MODEL_PARAMS": json.dumps({"custom_params": {"structured_outputs": {"choice": [ANSWER]}}}),
            "TASK_MODEL_PARAMS": json.dumps({"structured_outputs": {"choice": [TASKS_ANSWER]}}),
        }
        webui = stack.enter_context(open_webui(folder("open-webui"), connections, **variables))
        yield Stage(webui, front, tap, webui.person("ana"), webui.person("ben"))
