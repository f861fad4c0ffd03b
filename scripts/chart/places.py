"""A manifest becomes a template: the same text, with expressions in some places.

A place that is not in its manifest as often as was said is an error: the manifest has changed, and somebody must look.
"""

import re
from dataclasses import dataclass

HEAD = "{{- /* Written by scripts/write_chart.py from deploy/%s. */}}\n"
IMAGES = {
    "poolgate": "poolgate",
    "valkey/valkey": "valkey",
    "vllm/vllm-openai": "vllm",
    "prom/prometheus": "prometheus",
    "grafana/grafana": "grafana",
    "ghcr.io/open-webui/open-webui": "openWebui",
    "otel/opentelemetry-collector-contrib": "otelCollector",
}
"""The key under `images` of each."""
NAMESPACES = {"poolgate": "{{ .Release.Namespace }}", "vllm": "{{ .Values.vllmNamespace }}"}

_IMAGE = re.compile(r"\bimage: (\S+):[^\s:]+$", re.MULTILINE)
_IN_A_NAMESPACE = re.compile(
    r"\b(?:namespace: |kubernetes\.io/metadata\.name: )[\w-]+|\b(?:names|namespaces|matchNames): \[[^]]*\]"
)
_NAMESPACE = re.compile(r"(?<=[ \[])(?:poolgate|vllm)\b(?!-)")
_LABELS = re.compile(r"^( +labels: \{)", re.MULTILINE)
_LABELS_BELOW = re.compile(r"^( +)labels:\n", re.MULTILINE)
_POD = re.compile(r"^( +)enableServiceLinks: false\n", re.MULTILINE)
"""A line that each pod of ours has."""
_FROM_THE_ROOT = re.compile(r"(?<![\w$])\.(?=(?:Values|Release)\.)")


class Misplaced(Exception):
    """A manifest does not have what is to be replaced in it."""


@dataclass(frozen=True)
class Place:
    """Where an expression goes."""

    old: str
    new: str
    times: int = 1


@dataclass(frozen=True)
class Template:
    """A manifest that becomes a template."""

    source: str
    """Below deploy/."""
    target: str
    """Below the chart's templates/."""
    places: tuple[Place, ...] = ()
    when: str = ""
    """The condition; without one it is always there."""
    each: str = ""
    """The list for each of whose items it is there."""
    document: int | None = None
    """Which of the manifest's objects, from 0; all of them without."""


def template(of: Template, manifest: str) -> str:
    """The template's text.

    Raises `Misplaced`.
    """
    text = manifest if of.document is None else manifest.split("\n---\n")[of.document].rstrip("\n") + "\n"
    # What is there in braces is somebody else's to fill in.
    text = everywhere(text.replace("{{", '{{ "{{" }}'))
    for place in of.places:
        text = placed(text, place, of.source)
    if of.each:
        text = f"---\n{_FROM_THE_ROOT.sub('$.', text)}"
    if of.when:
        text = f"{{{{- if {of.when} }}}}\n{text}{{{{- end }}}}\n"
    if of.each:
        text = f"{{{{- range {of.each} }}}}\n{text}{{{{- end }}}}\n"
    return HEAD % of.source + text


def everywhere(text: str) -> str:
    """What every manifest has: images, namespaces, labels, pods, and where more of it is told."""
    text = text.replace("(../README.md)", "(deploy/kustomize/components/README.md)")
    text = _IMAGE.sub(lambda found: f"image: {{{{ quote .Values.images.{IMAGES[found[1]]} }}}}", text)
    text = in_the_namespaces(text)
    # As the kustomizations' `labels` do.
    text = _LABELS.sub(r"\1app.kubernetes.io/part-of: poolgate, ", text)
    text = _LABELS_BELOW.sub(r"\1labels:\n\1  app.kubernetes.io/part-of: poolgate\n", text)
    return _POD.sub(
        r"\g<0>\1{{- with .Values.imagePullSecrets }}\n\1imagePullSecrets: {{ toJson . }}\n\1{{- end }}\n", text
    )


def in_the_namespaces(text: str) -> str:
    """The namespaces as the release has them."""
    return _IN_A_NAMESPACE.sub(lambda named: _NAMESPACE.sub(lambda each: NAMESPACES[each[0]], named[0]), text)


def placed(text: str, place: Place, source: str) -> str:
    """The text with one place filled.

    Raises `Misplaced`.
    """
    if (times := text.count(place.old)) != place.times:
        raise Misplaced(f"{source}: {times} times instead of {place.times}: {place.old!r}")
    return text.replace(place.old, place.new)
