# The image of Poolgate: `docker build --tag poolgate:0.1.0 .`; docs/image.md says the rest.
# The base, by its version: 3.14 runs a request in a tenth less than 3.11 (docs/performance.md). Its digest can only be
# looked up where its registry is: docs/image.md has the command.
FROM python:3.14.10-slim-trixie AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# The project as a wheel, built by locked tools, which stay behind here.
FROM base AS wheel
COPY requirements/build.lock requirements/
RUN python -m pip install --require-hashes --only-binary=:all: -r requirements/build.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY loadtest loadtest
RUN python -m pip wheel --no-index --no-deps --no-build-isolation --wheel-dir wheels .

# Everything that runs, and of the base only what that needs. Paths are relative to /build, so that a test can replay
# these very steps in any folder.
FROM base AS assembled
COPY requirements/extras.lock requirements/
RUN python -m pip install --ignore-installed --prefix installed --no-compile --no-warn-script-location \
    --require-hashes --only-binary=:all: -r requirements/extras.lock
COPY --from=wheel /build/wheels wheels
RUN python -m pip install --ignore-installed --prefix installed --no-compile --no-warn-script-location \
    --no-index --no-deps wheels/poolgate-*.whl
COPY deploy/image/root_filesystem.py ./
RUN python root_filesystem.py installed root

FROM scratch
LABEL org.opencontainers.image.title="poolgate" \
      org.opencontainers.image.description="An OpenAI-compatible gateway in front of pools of vLLM pods on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
COPY --from=assembled /build/root /
# The byte code is there already, and the tree is read-only. Not PYTHONUNBUFFERED: it would take the buffer from under
# the access log, which writes whole batches by itself.
ENV PATH=/usr/local/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
# A library that was left behind is found here, and not in a cluster.
RUN ["python", "-c", "import gateway.cli.main, gateway.app, loadtest.simulator, aiohttp, hiredis, joserfc.jwt, kubernetes.aio, opentelemetry.sdk, opentelemetry.exporter.otlp.proto.http, redis.asyncio, ssl, uvloop"]
EXPOSE 8000 9090
STOPSIGNAL SIGTERM
# For docker and compose; Kubernetes asks by its own probes.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-IS", "-c", "from http.client import HTTPConnection as To; to = To('127.0.0.1', 9090, timeout=2); to.request('GET', '/readyz'); raise SystemExit(to.getresponse().status != 200)"]
ENTRYPOINT ["poolgate"]
CMD ["serve", "--config", "/etc/poolgate/gateway.yaml"]
