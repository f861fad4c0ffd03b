"""What a kubelet makes of a container: the variables that it is started with, and its words with these in them."""

from collections.abc import Callable, Mapping

from tests.manifests.building import Manifest, environment
from tests.manifests.checks.quantities import quantity


def variables_of(
    container: Manifest, secret: Callable[[str, str], str | None], fields: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Its variables. `secret`: an entry, by the Secret's name and its own; None where there is none, which only an
    optional one may be. `fields`: those of the pod, by their paths.
    """
    found: dict[str, str] = {}
    for name, value in environment(container).items():
        match value:
            case str():
                found[name] = expanded(value, found)
            case {"secretKeyRef": {"name": named, "key": key, **rest}}:
                text = secret(named, key)
                assert text is not None or rest.get("optional"), f"{name}: there is no {key} in the Secret {named}"
                if text is not None:
                    found[name] = text
            case {"fieldRef": {"fieldPath": path}}:
                found[name] = (fields or {})[path]
            case {"resourceFieldRef": {"resource": "requests.cpu"}}:
                found[name] = str(quantity(container["resources"]["requests"]["cpu"]))
            case _:
                raise AssertionError(f"{name}: {value}")
    return found


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """With each `$(NAME)` replaced that is known by now."""
    for name, value in variables.items():
        text = text.replace(f"$({name})", value)
    return text
