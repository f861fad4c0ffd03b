"""The page that lists what the ops port answers: its own routes and what each says of itself."""

import re
from collections.abc import Mapping
from typing import Any

from gateway.api.page.document import document
from gateway.api.page.drawing import text

_CODE, _as_code = re.compile(r"`([^`]+)`"), r"<code>\1</code>"


def docs_page(paths: Mapping[str, Mapping[str, Any]]) -> str:
    """`paths` as OpenAPI has them, each operation with a description."""
    rows = "".join(
        f'<tr><th scope="row"><code>{text(method.upper())} {text(path)}</code></th>'
        f"<td>{_CODE.sub(_as_code, text(told['description']))}</td></tr>"
        for path, operations in paths.items()
        for method, told in operations.items()
    )
    body = f"""<header><h1>Poolgate</h1></header>
<main><section aria-labelledby="docs-title"><h2 id="docs-title">What this port answers</h2>
<table id="docs"><caption>Method and path, and what comes.</caption>
<thead><tr><th scope="col">Path</th><th scope="col">Answer</th></tr></thead><tbody>{rows}</tbody></table>
</section></main>
<footer><a href="status">the status page</a></footer>"""
    return document("<title>Poolgate: what this port answers</title>", body)
