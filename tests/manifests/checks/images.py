"""Images: each says which, the same everywhere, and ours is the version of this tree."""

import re
from collections import defaultdict
from collections.abc import Iterator

import gateway
from tests.manifests.building import Build, containers, pods, title

REFERENCE = re.compile(
    r"(?P<name>[a-z0-9]+(?:[._-][a-z0-9]+)*(?::\d+)?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][-A-Za-z0-9_.]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
VERSION = re.compile(r"v?\d+\.\d+\.\d+([-+.][-A-Za-z0-9.]+)?")
OURS = "poolgate"


def used(built: Build) -> Iterator[tuple[str, str]]:
    """Who uses which image."""
    for each, template in pods(built):
        for container in containers(template):
            yield f"{title(each)}: {container['name']}", container["image"]


def images_are_pinned(built: Build) -> list[str]:
    """By a whole version: a tag that moves is another program tomorrow, on some of the nodes."""
    found = []
    for who, image in used(built):
        parts = REFERENCE.fullmatch(image)
        if parts is None or not (parts["digest"] or VERSION.fullmatch(parts["tag"] or "")):
            found.append(f"{who}: {image} is not pinned to a version")
    return found


def an_image_has_one_version(built: Build) -> list[str]:
    """Two versions of one program, each right for half of the configuration."""
    found: dict[str, set[str]] = defaultdict(set)
    for _, image in used(built):
        found[image.partition("@")[0].rpartition(":")[0]].add(image)
    return [f"{name}: used as {', '.join(sorted(versions))}" for name, versions in found.items() if len(versions) > 1]


def our_image_is_this_version(built: Build) -> list[str]:
    """The manifests of a version are for the program of that version."""
    return [
        f"{who}: {image} is not {OURS}:{gateway.__version__}"
        for who, image in used(built)
        if image.rpartition("/")[2].partition(":")[0] == OURS and image != f"{OURS}:{gateway.__version__}"
    ]


def images_are_pulled_once(built: Build) -> list[str]:
    """What is pinned does not change: asking the registry at each start makes it a part of the serving path."""
    return [
        f"{title(each)}: {container['name']} has no imagePullPolicy: IfNotPresent"
        for each, template in pods(built)
        for container in containers(template)
        if container.get("imagePullPolicy") != "IfNotPresent"
    ]
