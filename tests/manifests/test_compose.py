"""deploy/compose: the file is valid by Compose's own schema; all that it names is there, and nothing of it is a copy.

No engine has run it where it was made. What its services do together: tests/integration/compose.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gateway import __version__
from gateway.cli.main import app
from gateway.cli.process import LAST_WORDS_SECONDS, LINGER_SECONDS
from gateway.config.reading import load_config
from loadtest.simulator.cli import parser
from tests.manifests.building import KUSTOMIZE, validator
from tests.manifests.test_alerts import promtool

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "compose"
FILE = FOLDER / "compose.yaml"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))

Service = dict[str, Any]
WHOLE: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
SERVICES: dict[str, Service] = WHOLE["services"]
USER = "65532:65532"
ONCE = {"folders", "models", "secrets"}
"""Services that end."""
CHOWN = {"folders", "models"}
"""Those that run as root, to do nothing but this."""

each_service = pytest.mark.parametrize("name", SERVICES)


def judged(file: Path) -> str:
    """What Compose's own schema has against a file; empty where it is valid."""
    judge = [str(validator("check-jsonschema")), "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(judge, capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def mounts(name: str, kind: str) -> list[dict[str, Any]]:
    """Of one service; `bind` or `volume`."""
    return [mount for mount in SERVICES[name].get("volumes", []) if mount["type"] == kind]


def source(mount: dict[str, Any]) -> Path:
    return (FOLDER / str(mount["source"])).resolve()


def waits_for(name: str) -> dict[str, str]:
    """The condition of each service that must come before."""
    return {before: wanted["condition"] for before, wanted in SERVICES[name].get("depends_on", {}).items()}


def all_before(name: str) -> set[str]:
    return {name}.union(*(all_before(before) for before in waits_for(name)))


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)(s|m)", text)
    assert found is not None, text
    return int(found[1]) * {"s": 1, "m": 60}[found[2]]


@cache
def containers() -> dict[str, dict[str, Any]]:
    """Of everything below deploy/kustomize: the containers that run an image, by the image."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(KUSTOMIZE.glob("**/*.yaml")):
        for each in yaml.safe_load_all(file.read_text("utf-8")):
            for container in containers_in(each):
                found.setdefault(container["image"], container)
    return found


def containers_in(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if isinstance(value.get("image"), str):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from containers_in(each)


def variables(container: dict[str, Any]) -> dict[str, str]:
    """Those whose values stand in a manifest."""
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


@pytest.mark.program("check-jsonschema")
def test_composes_own_schema_finds_the_file_valid() -> None:
    assert judged(FILE) == ""


@pytest.mark.program("check-jsonschema")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("read_only: true", "readonly: true"),
        ("networks: [web]", "networks: web"),
        ("condition: service_healthy", "condition: healthy"),
    ],
)
def test_the_schema_would_find_a_fault(right: str, wrong: str, tmp_path: Path) -> None:
    text = FILE.read_text("utf-8")
    assert right in text
    broken = tmp_path / "compose.yaml"
    broken.write_text(text.replace(right, wrong, 1), "utf-8")
    assert judged(broken) != ""


def test_no_variable_of_the_shell_is_wanted_and_dollars_reach_the_container() -> None:
    text = FILE.read_text("utf-8")
    assert "$" not in text.replace("$$", "")
    assert '"$$(cat /secrets/open-webui/api-key)"' in text


def test_the_profile_adds_vllm_and_takes_nothing_away() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" in service} == {"small-0", "models"}
    for name, service in SERVICES.items():
        assert "profiles" in service or not waits_for(name).keys() & {"small-0", "models"}, name


@each_service
def test_every_image_is_pinned_and_the_one_that_runs_in_a_cluster(name: str) -> None:
    image = SERVICES[name]["image"]
    assert image in containers(), image
    assert re.fullmatch(r"[a-z0-9./-]+:v?\d+\.\d+\.\d+[a-z0-9.-]*", image)


def test_our_own_image_is_built_from_this_tree_and_never_fetched() -> None:
    own = {name for name, service in SERVICES.items() if service["image"].startswith("poolgate")}
    assert own == {"secrets", "gateway", "chat-0", "chat-1"}
    for name in own:
        assert SERVICES[name]["image"] == f"poolgate:{__version__}"
        assert (FOLDER / SERVICES[name]["build"]).resolve() == ROOT
        assert SERVICES[name]["pull_policy"] == "build"
    assert all("build" not in service for name, service in SERVICES.items() if name not in own)


@each_service
def test_every_service_runs_without_rights_on_a_root_that_it_cannot_write(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "container_name" not in service
    assert "privileged" not in service
    if name in CHOWN:
        assert (service["user"], service["cap_add"]) == ("0:0", ["CHOWN"])
        assert service["network_mode"] == "none"
        assert service["entrypoint"][0] == "chown"
    else:
        assert int(service["user"].partition(":")[0]) >= 2000
        assert "cap_add" not in service


@each_service
def test_every_service_has_a_bound_on_its_memory_and_on_its_log(name: str) -> None:
    assert re.fullmatch(r"\d+[mg]", SERVICES[name]["mem_limit"])
    assert SERVICES[name]["logging"] == {"driver": "local"}


@each_service
def test_only_what_ends_is_not_started_again(name: str) -> None:
    assert SERVICES[name]["restart"] == ("no" if name in ONCE else "unless-stopped")


def test_ports_are_open_to_this_machine_alone_and_each_once() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    found = [re.fullmatch(r"127\.0\.0\.1:(\d+):\d+", port) for port in published]
    assert all(found), published
    outside = [port[1] for port in found if port]
    assert sorted(outside) == ["3000", "8000", "8080", "9090", "9091"]


def test_only_the_gateway_reaches_redis_and_only_it_and_prometheus_the_pods() -> None:
    on = {
        network: {name for name, service in SERVICES.items() if network in service.get("networks", [])}
        for network in WHOLE["networks"]
    }
    assert on["pods"] == {"gateway", "prometheus", "chat-0", "chat-1", "small-0"}
    assert WHOLE["networks"]["pods"] == {"internal": True}
    assert on["internet"] == {"small-0"}
    assert on["web"] == {"gateway", "open-webui"}
    assert on["monitoring"] == {"gateway", "prometheus", "grafana"}
    assert SERVICES["redis"]["network_mode"] == "none"
    with_socket = {name for name in SERVICES for mount in mounts(name, "volume") if mount["source"] == "redis"}
    assert with_socket == {"folders", "redis", "gateway"}


@each_service
def test_every_service_says_which_networks_it_is_on(name: str) -> None:
    # Otherwise it were on one that all share.
    assert ("networks" in SERVICES[name]) != ("network_mode" in SERVICES[name])
    assert set(SERVICES[name].get("networks", [])) <= WHOLE["networks"].keys()


def test_what_is_mounted_from_the_tree_is_there_is_read_only_and_is_the_single_copy() -> None:
    mounted = {(name, mount["target"]): mount for name in SERVICES for mount in mounts(name, "bind")}
    for mount in mounted.values():
        assert source(mount).exists(), mount
        assert source(mount).is_relative_to(ROOT)
        assert mount["read_only"] is True
    assert {key: str(source(mount).relative_to(ROOT)) for key, mount in mounted.items()} == {
        ("secrets", "/etc/poolgate/secrets.yaml"): "deploy/kustomize/components/first-secrets/secrets.yaml",
        ("gateway", "/etc/poolgate"): "deploy/compose/gateway",
        ("prometheus", "/etc/prometheus/prometheus.yaml"): "deploy/compose/prometheus.yaml",
        ("prometheus", "/etc/prometheus/rules"): "deploy/prometheus/rules",
        (
            "grafana",
            "/etc/grafana/provisioning/datasources/datasources.yaml",
        ): "deploy/kustomize/components/grafana/datasources.yaml",
        (
            "grafana",
            "/etc/grafana/provisioning/dashboards/dashboards.yaml",
        ): "deploy/kustomize/components/grafana/dashboards.yaml",
        ("grafana", "/etc/grafana/dashboards"): "deploy/grafana",
    }
    assert sorted(str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*") if file.is_file()) == [
        "README.md",
        "compose.yaml",
        "gateway/gateway.yaml",
        "prometheus.yaml",
    ]


def test_every_volume_exists_and_is_given_to_the_user_that_writes_to_it_before_it_starts() -> None:
    volumes = set(WHOLE["volumes"])
    assert {mount["source"] for name in SERVICES for mount in mounts(name, "volume")} == volumes
    given = {mount["source"]: name for name in sorted(CHOWN) for mount in mounts(name, "volume")}
    assert set(given) == volumes
    for name in CHOWN:
        assert SERVICES[name]["command"] == [mount["target"] for mount in mounts(name, "volume")]
    for name, service in SERVICES.items():
        for mount in mounts(name, "volume"):
            # Nothing of the image: what is copied from there belongs to root.
            assert mount["volume"]["nocopy"] is True
            if name not in CHOWN:
                assert given[mount["source"]] in all_before(name), name
                owner = SERVICES[given[mount["source"]]]["entrypoint"][1].partition(":")[0]
                assert mount.get("read_only") or service["user"].partition(":")[0] == owner, name


def test_every_service_sees_its_own_secrets_after_they_were_made() -> None:
    spec = yaml.safe_load(source(mounts("secrets", "bind")[0]).read_text("utf-8"))
    made = {each["secret"]: each["entry"] for each in [*spec["random"], *spec["keys"], spec["keys_file"]]}
    seen = {}
    for name in SERVICES:
        for mount in mounts(name, "volume"):
            if mount["source"] == "secrets" and name not in ONCE:
                assert mount["read_only"] is True
                assert mount["target"] == f"/secrets/{mount['volume']['subpath']}"
                assert waits_for(name)["secrets"] == "service_completed_successfully"
                seen[name] = mount["volume"]["subpath"]
    assert seen == {"gateway": "poolgate-keys", "grafana": "grafana", "open-webui": "open-webui"}
    assert set(seen.values()) <= made.keys()
    text = FILE.read_text("utf-8") + (FOLDER / "gateway" / "gateway.yaml").read_text("utf-8")
    entries = {(each["secret"], each["entry"]) for each in [*spec["random"], *spec["keys"], spec["keys_file"]]}
    named = set(re.findall(r"/secrets/([\w-]+)/([\w.-]+)", text))
    assert named == {
        ("poolgate-keys", "keys.yaml"),
        ("grafana", "admin-password"),
        ("open-webui", "api-key"),
        ("open-webui", "secret-key"),
    }
    assert named <= entries


def test_who_waits_for_health_waits_for_what_has_a_health_check() -> None:
    image = (ROOT / "Dockerfile").read_text("utf-8")
    assert re.search(r"^HEALTHCHECK .*\n.*9090.*readyz", image, re.MULTILINE)
    for name in SERVICES:
        for before, condition in waits_for(name).items():
            if condition == "service_healthy":
                assert "healthcheck" in SERVICES[before] or before == "gateway", before
            if condition == "service_completed_successfully":
                assert before in ONCE
    # The image asks a gateway, which these are not.
    assert all("healthcheck" in SERVICES[name] for name in ("secrets", "chat-0", "chat-1"))


def test_the_gateways_configuration_is_valid_and_names_services_ports_and_mounts() -> None:
    file = FOLDER / "gateway" / "gateway.yaml"
    done = CliRunner().invoke(app, ["check", str(file), "--offline"])
    assert done.exit_code == 0, done.output
    config = yaml.safe_load(file.read_text("utf-8"))
    for pod in config["discovery"]["pods"]:
        assert pod["url"] == f"http://{pod['name']}:8000"
        assert pod["name"] in SERVICES
        assert {"--port-base=8000", "--port=8000"} & set(SERVICES[pod["name"]]["command"])
    targets = {mount["target"] for mount in SERVICES["gateway"]["volumes"]}
    assert "/".join(["", *Path(config["auth"]["keys_file"]).parts[1:-1]]) in targets
    redis = SERVICES["redis"]["command"]
    socket = redis[redis.index("--unixsocket") + 1]
    assert config["limits"]["redis_url"] == f"unix://{socket}"
    assert str(Path(socket).parent) in targets & {mount["target"] for mount in SERVICES["redis"]["volumes"]}


def test_a_container_is_killed_only_after_its_own_time_to_end(tmp_path: Path) -> None:
    plain = tmp_path / "plain.yaml"
    config = yaml.safe_load((FOLDER / "gateway" / "gateway.yaml").read_text("utf-8"))
    plain.write_text(yaml.safe_dump({"server": config["server"]}), "utf-8")
    drain = load_config(plain, {}).server.drain_seconds
    least = LINGER_SECONDS + drain + LAST_WORDS_SECONDS
    assert seconds(SERVICES["gateway"]["stop_grace_period"]) > least
    for name in ("chat-0", "chat-1", "small-0"):
        own = next(word for word in SERVICES[name]["command"] if word.startswith("--shutdown-timeout="))
        assert int(own.partition("=")[2]) >= drain
        assert seconds(SERVICES[name]["stop_grace_period"]) > int(own.partition("=")[2])


def test_what_our_own_commands_are_given_exists() -> None:
    for name in ("gateway", "secrets"):
        command, *words = SERVICES[name]["command"]
        helped = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
        assert {word for word in words if word.startswith("-")} <= set(re.findall(r"--[a-z-]+", helped)), name
    for name in ("chat-0", "chat-1"):
        parser().parse_args(SERVICES[name]["command"])
    assert SERVICES["chat-0"] == SERVICES["chat-1"]


@pytest.mark.parametrize("name", ["chat-0", "chat-1"])
def test_a_simulated_pod_listens_to_the_other_containers_where_the_gateway_looks(name: str) -> None:
    parsed = parser().parse_args(SERVICES[name]["command"])
    assert (parsed.host, parsed.port_base) == ("0.0.0.0", 8000)
    told = yaml.safe_load((FOLDER / "gateway" / "gateway.yaml").read_text("utf-8"))["discovery"]["pods"]
    assert f"http://{name}:{parsed.port_base}" in {pod["url"] for pod in told}


def test_vllm_is_given_what_it_is_given_in_a_cluster() -> None:
    ours, there = SERVICES["small-0"], containers()[SERVICES["small-0"]["image"]]
    # There the gateway drains for longer, and an annotation lets it send priorities.
    other = {"--shutdown-timeout=20", "--shutdown-timeout=600", "--scheduling-policy=priority"}
    assert [word for word in ours["command"] if word not in other] == [
        word for word in there["args"] if word not in other
    ]
    assert ours["entrypoint"] == there["command"]
    assert ours["environment"].items() <= variables(there).items()


def test_open_webui_is_told_what_it_is_told_in_a_cluster() -> None:
    ours = dict(SERVICES["open-webui"]["environment"])
    there = variables(containers()[SERVICES["open-webui"]["image"]])
    assert ours.pop("OPENAI_API_BASE_URL") == "http://gateway:8000/v1"
    del there["OPENAI_API_BASE_URL"]
    # Browsers come to the port of this machine alone; in a cluster each overlay has its host.
    (port,) = SERVICES["open-webui"]["ports"]
    assert ours.pop("CORS_ALLOW_ORIGIN") == ";".join(
        f"http://{host}:{port.split(':')[1]}" for host in ("127.0.0.1", "localhost")
    )
    there.pop("WEBUI_ADMIN_EMAIL", None)  # whoever comes first is administrator
    assert ours == there
    written = {*SERVICES["open-webui"]["tmpfs"], *(each["target"] for each in mounts("open-webui", "volume"))}
    assert {ours[name] for name in ("HOME", "DATA_DIR", "STATIC_DIR")} <= written


def test_no_secret_stands_in_a_file() -> None:
    for file in (FILE, FOLDER / "gateway" / "gateway.yaml", FOLDER / "prometheus.yaml"):
        for line in file.read_text("utf-8").splitlines():
            found = re.search(r"(?i)(?:password|secret_key|api_key)\w*\s*[:=]\s*(\S+)", line)
            assert found is None or found[1].startswith(("/secrets/", '"$$(cat')), line


@pytest.mark.program("promtool")
def test_promtool_finds_what_prometheus_is_given_valid(tmp_path: Path) -> None:
    for mount in mounts("prometheus", "bind"):
        to = tmp_path / mount["target"].lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(source(mount))
    flag = next(word for word in SERVICES["prometheus"]["command"] if word.startswith("--config.file="))
    assert "1 rule files found" in promtool("check", "config", tmp_path / flag.partition("=")[2].lstrip("/"))


def test_prometheus_scrapes_every_pod_by_the_names_that_the_gateway_has() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text("utf-8"))
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs["poolgate"]["honor_labels"] is True
    assert jobs["poolgate"]["static_configs"] == [{"targets": ["gateway:9090"]}]
    pods = yaml.safe_load((FOLDER / "gateway" / "gateway.yaml").read_text("utf-8"))["discovery"]["pods"]
    by_name = {pod["name"]: pod["pool"] for pod in pods}
    found = {
        each["targets"][0].partition(":")[0]: (each["labels"]["pool"], each["labels"]["pod"])
        for each in jobs["vllm"]["static_configs"]
    }
    (asked,) = jobs["vllm"]["dns_sd_configs"]
    for name in asked["names"]:
        labels = {
            rule["target_label"]: rule["replacement"]
            for rule in jobs["vllm"]["relabel_configs"]
            if rule["source_labels"] == ["__meta_dns_name"] and re.fullmatch(rule["regex"], name)
        }
        found[name] = (labels["pool"], labels["pod"])
        assert "profiles" in SERVICES[name], "what is always there needs no look"
    assert found == {name: (pool, name) for name, pool in by_name.items()}
    assert asked["port"] == 8000


def test_grafana_has_the_datasource_that_the_dashboards_use_and_finds_them() -> None:
    by_target = {mount["target"]: source(mount) for mount in mounts("grafana", "bind")}
    (datasource,) = yaml.safe_load(
        by_target["/etc/grafana/provisioning/datasources/datasources.yaml"].read_text("utf-8")
    )["datasources"]
    assert (datasource["type"], datasource["isDefault"]) == ("prometheus", True)
    host, _, port = datasource["url"].removeprefix("http://").partition(":")
    assert f"--web.listen-address=0.0.0.0:{port}" in SERVICES[host]["command"]
    assert set(SERVICES[host]["networks"]) & set(SERVICES["grafana"]["networks"])
    (provider,) = yaml.safe_load(by_target["/etc/grafana/provisioning/dashboards/dashboards.yaml"].read_text("utf-8"))[
        "providers"
    ]
    assert by_target[provider["options"]["path"]] == DASHBOARDS[0].parent
    assert DASHBOARDS
    for file in DASHBOARDS:
        board = json.loads(file.read_text("utf-8"))
        # They take whichever is of this type: the default one, where nobody chose.
        uids = set(re.findall(r'"uid": "(\$\{?\w+\}?|prometheus)"', file.read_text("utf-8")))
        assert uids <= {"${datasource}", datasource["uid"]}
        kinds = {each["name"]: each["query"] for each in board["templating"]["list"] if each["type"] == "datasource"}
        assert kinds == {"datasource": datasource["type"]}


def test_grafanas_password_is_read_from_its_file() -> None:
    assert SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/secrets/grafana/admin-password"
    there = variables(containers()[SERVICES["grafana"]["image"]])
    for name, value in SERVICES["grafana"]["environment"].items():
        assert name.endswith("__FILE") or there[name] == value, name
