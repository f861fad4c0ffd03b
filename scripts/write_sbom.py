"""The bill of materials of what the gateway runs with, in CycloneDX: `python -m scripts.write_sbom > sbom.json`.

Names, versions and hashes are those of the lock that the image installs; licences are what the installed packages say
of themselves. The same lock gives the same bytes: there is no date in it, and its serial number is made of its content.
"""

import json
import re
import sys
import uuid
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

from packaging.markers import Marker

from gateway import __version__

LOCK = Path(__file__).resolve().parents[1] / "requirements" / "extras.lock"
_ENTRY = re.compile(
    r"^([a-z0-9._-]+)==(\S+?)(?: ; (.*?))? \\\n((?:\s+--hash=sha256:[0-9a-f]{64}(?: \\)?\n?)+)", re.MULTILINE
)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_SPOKEN = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "MIT License": "MIT",
    "Python Software Foundation License": "PSF-2.0",
}
"""What packages say in other words than SPDX's."""


class Locked(NamedTuple):
    """One package of the lock."""

    name: str
    version: str
    hashes: tuple[str, ...]
    """SHA-256 of each file that may be installed, as hexadecimal digits."""


def locked(text: str) -> list[Locked]:
    """The packages of a lock file that a machine such as this one installs, in its order."""
    return [
        Locked(name, version, tuple(_HASH.findall(hashes)))
        for name, version, marker, hashes in _ENTRY.findall(text)
        if not marker or Marker(marker).evaluate()
    ]


def licence_of(name: str) -> str:
    """What an installed package says of its licence, as an SPDX expression.

    Raises `PackageNotFoundError`.
    """
    told = distribution(name).metadata
    if (expression := told.get("License-Expression")) is not None:
        return expression
    classified = [each.rpartition(" :: ")[2] for each in told.get_all("Classifier") or () if each.startswith("License")]
    said = (told.get("License") or "").strip()
    word = said if 0 < len(said) < 40 else next(iter(classified), "")
    return _SPOKEN.get(word, word)


def bill(packages: list[Locked]) -> dict[str, Any]:
    """The bill, as CycloneDX 1.6 wants it."""
    components = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{package.name}@{package.version}",
            "name": package.name,
            "version": package.version,
            "licenses": [{"expression": licence_of(package.name)}],
            "purl": f"pkg:pypi/{package.name}@{package.version}",
            "properties": [{"name": "poolgate:file-sha256", "value": each} for each in package.hashes],
        }
        for package in packages
    ]
    refs = [component["bom-ref"] for component in components]
    root = {"type": "application", "bom-ref": "poolgate", "name": "poolgate", "version": __version__}
    content = json.dumps([root, components], sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {"component": root},
        "components": components,
        "dependencies": [{"ref": "poolgate", "dependsOn": refs}],
    }


if __name__ == "__main__":
    json.dump(bill(locked(LOCK.read_text("utf-8"))), sys.stdout, indent=2)
    sys.stdout.write("\n")
