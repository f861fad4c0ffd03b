"""All targets, and why a module that looks like a parser's has none.

`test_targets` finds modules that may read bytes by what they import, so a new parser without a target is noticed.
"""

from tests.fuzz import answers, bodies, callers, cluster, files, origins, visits
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    name: target
    for module in (visits, origins, bodies, answers, callers, cluster, files)
    for name, target in module.TARGETS.items()
}
READING = {
    "base64",
    "binascii",
    "fnmatch",
    "gzip",
    "httptools",
    "ipaddress",
    "json",
    "msgspec",
    "orjson",
    "python_multipart",
    "re",
    "struct",
    "urllib",
    "yaml",
    "zlib",
}
"""What a module imports that reads bytes, or text that comes from outside."""
NO_PARSERS = {
    "gateway.api.page.docs": "marks up our own docstrings",
    "gateway.api.page.document": "writes base64 of our own script's digest",
    "gateway.api.page.drawing": "writes",
    "gateway.api.page.live": "writes JSON",
    "gateway.balancing.affinity": "cuts a prompt at fixed places",
    "gateway.cli.chat": "quotes a name in a URL",
    "gateway.cli.check": "writes JSON",
    "gateway.cli.config": "writes JSON",
    "gateway.cli.config_text": "writes YAML",
    "gateway.cli.demo": "writes JSON",
    "gateway.cli.explain": "writes JSON",
    "gateway.cli.keys": "writes JSON",
    "gateway.cli.log_lines": "cuts at line ends; unpacking is the standard library's",
    "gateway.cli.ops_client": "quotes an id in a URL; its answers are our own",
    "gateway.cli.secrets": "writes JSON",
    "gateway.cli.secrets_cluster": "base64 of secrets that the API server keeps for us",
    "gateway.cli.usage": "writes JSON",
    "gateway.cli.watching": "writes JSON",
    "gateway.config.secrets": "patterns of names; see tests/property/test_secrets.py",
    "gateway.core.caller": "compares with globs",
    "gateway.core.words": "makes texts of our own fit to be shown",
    "gateway.core.fleet": "compares with globs",
    "gateway.discovery.routes": "compares with globs",
    "gateway.limits.rules": "compares with globs",
    "gateway.pipeline.catalogue": "writes JSON",
    "gateway.telemetry.access_log": "writes JSON",
    "gateway.telemetry.log": "reads records of our own",
}
