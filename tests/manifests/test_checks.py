"""Each check of the linter is silent on a system in which nothing is wrong, and speaks up when one thing is.

An example breaks `sample.yaml` in one place and says which check must find it, and a part of what it says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests import checks
from tests.manifests.building import Build, Manifest, changeable, containers, find, templates
from tests.manifests.checks import (
    Check,
    admission,
    bounds,
    images,
    naming,
    ports,
    references,
    security,
    selecting,
    standard,
    stopping,
)
from tests.manifests.checks.quantities import quantity

SAMPLE = tuple(yaml.safe_load_all((Path(__file__).parent / "sample.yaml").read_text("utf-8")))
HERE, THERE = "poolgate", "vllm"
"""The two namespaces."""


class Sample:
    """A copy that may be broken, and its parts by short names."""

    def __init__(self) -> None:
        self.objects = changeable(SAMPLE)

    def __getitem__(self, kind_and_name: str) -> Manifest:
        """`Service poolgate`."""
        kind, _, name = kind_and_name.partition(" ")
        return find(self.objects, kind, name)

    def spec(self, kind_and_name: str) -> Manifest:
        """Of an object."""
        return dict.__getitem__(self[kind_and_name], "spec")

    def template(self, kind_and_name: str = "Deployment poolgate") -> Manifest:
        """Of a workload, the first."""
        return templates(self[kind_and_name])[0]

    def pod(self, kind_and_name: str = "Deployment poolgate") -> Manifest:
        """The spec of its pods."""
        return dict.__getitem__(self.template(kind_and_name), "spec")

    def container(self, kind_and_name: str = "Deployment poolgate") -> Manifest:
        """Its first."""
        return containers(self.template(kind_and_name))[0]

    def add(self, manifest: Manifest) -> None:
        """One more object."""
        self.objects.append(manifest)

    def drop(self, kind_and_name: str) -> Manifest:
        """One object less."""
        return self.objects.pop(self.objects.index(self[kind_and_name]))

    def twin(self, kind_and_name: str, name: str) -> Manifest:
        """One more object, like another."""
        (made,) = changeable((self[kind_and_name],))
        made["metadata"]["name"] = name
        self.add(made)
        return made


@dataclass(frozen=True)
class Example:
    """What is broken, who must say so, and with which words among others."""

    check: Check
    words: str
    breaks: Callable[[Sample], Any]


CHAT, GIANT = "Deployment vllm-chat", "LeaderWorkerSet vllm-giant"
BUDGET, SCALER = "PodDisruptionBudget poolgate", "HorizontalPodAutoscaler poolgate"


def one_node(sample: Sample, mode: str = "ReadWriteOnce") -> Any:
    """The claim is for one node at a time."""
    return sample.spec("PersistentVolumeClaim models").update(accessModes=[mode])


def sources(sample: Sample) -> list[Manifest]:
    """Of the gateway's files."""
    return list(sample.pod()["volumes"][0]["projected"]["sources"])


def claim(sample: Sample, **spec: Any) -> Any:
    """The models' claim says this."""
    return sample.spec("PersistentVolumeClaim models").update(spec)


def keep(sample: Sample, least: int | str) -> Any:
    """The budget keeps so many."""
    sample.spec(BUDGET).pop("maxUnavailable")
    return sample.spec(BUDGET).update(minAvailable=least)


def tolerate(sample: Sample, **toleration: Any) -> Any:
    """The gateways go to tainted nodes."""
    return sample.pod().update(tolerations=[toleration])


def reach(sample: Sample, **block: Any) -> Any:
    """The gateways go out to these addresses."""
    return sample.spec("NetworkPolicy poolgate")["egress"][0]["to"][0].update(ipBlock=block)


def as_job(sample: Sample, **spec: Any) -> Any:
    """The pool's pods are a Job's."""
    sample[CHAT].update(kind="Job", apiVersion="batch/v1")
    sample.pod("Job vllm-chat").update(restartPolicy="Never")
    return sample["Job vllm-chat"].update(spec={"template": sample.template("Job vllm-chat"), **spec})


def by_cpu(sample: Sample, **target: Any) -> Any:
    """The gateways are scaled by what they use."""
    return sample.spec(SCALER).update(metrics=[{"type": "Resource", "resource": {"name": "cpu", "target": target}}])


def slowly(period: int, value: int = 1) -> dict[str, Any]:
    """How an autoscaler takes away."""
    return {"scaleDown": {"policies": [{"type": "Pods", "value": value, "periodSeconds": period}]}}


def route(sample: Sample, **rule: Any) -> Any:
    """The first rule of the HTTPRoute says more."""
    return sample.spec("HTTPRoute poolgate")["rules"][0].update(rule)


def configure(sample: Sample, text: str) -> None:
    """The gateways' configuration is this."""
    sample["ConfigMap poolgate-config"]["data"]["gateway.yaml"] = text


EXAMPLES = [
    # admission
    Example(
        admission.pods_hold_together,
        "two containers of one name",
        lambda s: s.pod()["containers"].append(s.container()),
    ),
    Example(
        admission.pods_hold_together,
        "has not one source",
        lambda s: s.pod(CHAT)["volumes"][1].update(secret={"secretName": "redis"}),
    ),
    Example(
        admission.pods_hold_together, "has not one way to ask", lambda s: s.container()["livenessProbe"].pop("httpGet")
    ),
    Example(
        admission.pods_hold_together,
        "has a successThreshold",
        lambda s: s.container()["livenessProbe"].update(successThreshold=2),
    ),
    Example(
        admission.pods_hold_together, "and one from elsewhere", lambda s: s.container()["env"][0].update(value="a")
    ),
    Example(
        admission.pods_hold_together,
        "longer than the grace of 30 s",
        lambda s: (
            s.pod(CHAT).pop("terminationGracePeriodSeconds"),
            s.container(CHAT)["lifecycle"]["preStop"]["sleep"].update(seconds=31),
        ),
    ),
    Example(
        admission.workloads_hold_together,
        "Recreate",
        lambda s: s.spec("Deployment poolgate")["strategy"].update(type="Recreate"),
    ),
    Example(admission.workloads_hold_together, "restartPolicy Never", lambda s: s.pod().update(restartPolicy="Never")),
    Example(admission.workloads_hold_together, "OnFailure or Never", lambda s: s[CHAT].update(kind="Job")),
    Example(admission.budgets_and_scales_hold_together, "one of them", lambda s: s.spec(BUDGET).update(minAvailable=1)),
    Example(
        admission.budgets_and_scales_hold_together, "above the most", lambda s: s.spec(SCALER).update(minReplicas=11)
    ),
    Example(admission.budgets_and_scales_hold_together, "0 replicas", lambda s: s.spec(SCALER).update(minReplicas=0)),
    Example(
        admission.policies_hold_together,
        "out of force",
        lambda s: s.spec("NetworkPolicy poolgate").update(policyTypes=["Ingress"]),
    ),
    Example(
        admission.policies_hold_together,
        "selectors, or an ipBlock",
        lambda s: s.spec("NetworkPolicy poolgate")["egress"][0]["to"][0].update(podSelector={}),
    ),
    Example(
        admission.pods_hold_together,
        "../vllm-key leaves its volume",
        lambda s: sources(s)[2]["secret"]["items"][0].update(path="../vllm-key"),
    ),
    Example(
        admission.pods_hold_together,
        "kills nothing, and has a grace",
        lambda s: s.container()["readinessProbe"].update(terminationGracePeriodSeconds=5),
    ),
    Example(
        admission.pods_hold_together,
        "a toleration of gpu has a value, or",
        lambda s: tolerate(s, key="gpu", operator="Exists", value="yes"),
    ),
    Example(admission.pods_hold_together, "a toleration of gpu has a value, or", lambda s: tolerate(s, key="gpu")),
    Example(admission.pods_hold_together, "a toleration of None has a value, or", lambda s: tolerate(s, value="gpu")),
    Example(
        admission.pods_hold_together,
        "ends, and is not of the effect NoExecute",
        lambda s: tolerate(s, key="gpu", operator="Exists", effect="NoSchedule", tolerationSeconds=5),
    ),
    Example(
        admission.pods_hold_together,
        "two topology spreads of one key",
        lambda s: s.pod()["topologySpreadConstraints"].append(s.pod()["topologySpreadConstraints"][0]),
    ),
    Example(
        admission.pods_hold_together,
        "matchLabelKeys add to a selector",
        lambda s: s.pod()["topologySpreadConstraints"][0].update(matchLabelKeys=[naming.NAME]),
    ),
    Example(
        admission.pods_hold_together,
        "matchLabelKeys add to a selector",
        lambda s: s.pod()["topologySpreadConstraints"][0].update(matchLabelKeys=["a"], labelSelector=None),
    ),
    Example(
        admission.pods_hold_together,
        "minDomains want DoNotSchedule",
        lambda s: s.pod()["topologySpreadConstraints"][0].update(minDomains=2),
    ),
    Example(
        admission.workloads_hold_together,
        "minReadySeconds are not over",
        lambda s: s.spec("Deployment poolgate").update(minReadySeconds=600),
    ),
    Example(admission.workloads_hold_together, "made by its controller", lambda s: as_job(s, selector={})),
    Example(admission.workloads_hold_together, "are a Job's", lambda s: s.pod().update(activeDeadlineSeconds=60)),
    Example(
        admission.budgets_and_scales_hold_together,
        "policy of scaleDown is for 1 to 1800 s",
        lambda s: s.spec(SCALER).update(behavior=slowly(1801)),
    ),
    Example(
        admission.budgets_and_scales_hold_together,
        "ScaledObject vllm/vllm-chat: a policy of scaleDown",
        lambda s: s.spec("ScaledObject vllm-chat").update(
            advanced={"horizontalPodAutoscalerConfig": {"behavior": slowly(60, 0)}}
        ),
    ),
    Example(
        admission.budgets_and_scales_hold_together,
        "the type Utilization has averageValue",
        lambda s: by_cpu(s, type="Utilization", averageValue="500m"),
    ),
    Example(
        admission.budgets_and_scales_hold_together, "the type Value has no number", lambda s: by_cpu(s, type="Value")
    ),
    Example(admission.policies_hold_together, "10.0.0.1/8 is no network", lambda s: reach(s, cidr="10.0.0.1/8")),
    Example(
        admission.policies_hold_together,
        "FD00::/8 is written in another way than fd00::/8",
        lambda s: reach(s, cidr="::/0", **{"except": ["FD00::/8"]}),
    ),
    Example(
        admission.policies_hold_together,
        "10.0.0.0/8 is not a part of 10.0.0.0/8",
        lambda s: reach(s, cidr="10.0.0.0/8", **{"except": ["10.0.0.0/8"]}),
    ),
    Example(
        admission.policies_hold_together,
        "fd00::/8 is not a part of 0.0.0.0/0",
        lambda s: reach(s, cidr="0.0.0.0/0", **{"except": ["fd00::/8"]}),
    ),
    Example(
        admission.policies_hold_together,
        "an endPort wants a number",
        lambda s: s.spec("NetworkPolicy poolgate")["ingress"][0]["ports"][0].update(endPort=9000),
    ),
    Example(admission.claims_and_services_hold_together, "accessModes []", lambda s: claim(s, accessModes=[])),
    Example(
        admission.claims_and_services_hold_together,
        "accessModes ['ReadWriteOncePod', 'ReadWriteMany']",
        lambda s: claim(s, accessModes=["ReadWriteOncePod", "ReadWriteMany"]),
    ),
    Example(
        admission.claims_and_services_hold_together,
        "asks for no storage",
        lambda s: claim(s, resources={"requests": {"storage": 0}}),
    ),
    Example(
        admission.claims_and_services_hold_together,
        "two ports have one number",
        lambda s: s.spec("Service poolgate")["ports"].append({"name": "again", "port": 8000, "targetPort": "ops"}),
    ),
    Example(
        admission.claims_and_services_hold_together,
        "one of several ports has no name",
        lambda s: s.spec("Service poolgate")["ports"].append({"port": 9090, "targetPort": "ops"}),
    ),
    Example(
        admission.routes_hold_together,
        "LLM.example.com is no name of a host",
        lambda s: s.spec("Ingress poolgate")["rules"][0].update(host="LLM.example.com"),
    ),
    Example(
        admission.routes_hold_together,
        "a_b is no name of a host",
        lambda s: s.spec("Ingress poolgate").update(tls=[{"hosts": ["a_b"]}]),
    ),
    Example(
        admission.routes_hold_together,
        "'v1' is no path",
        lambda s: s.spec("Ingress poolgate")["rules"][0]["http"]["paths"][0].update(path="v1"),
    ),
    Example(
        admission.routes_hold_together,
        "'/v1//a' is no path",
        lambda s: route(s, matches=[{"path": {"type": "PathPrefix", "value": "/v1//a"}}]),
    ),
    Example(
        admission.routes_hold_together,
        "longer than the request",
        lambda s: route(s, timeouts={"request": "1m", "backendRequest": "1m500ms"}),
    ),
    # bounds
    Example(
        bounds.objects_fit,
        "1048577 bytes are more than it may hold",
        lambda s: configure(s, "a" * ((1 << 20) + 1)),
    ),
    # A third of what annotations may hold, but for the six bytes that Go makes of each.
    Example(
        bounds.objects_fit,
        "of annotations, with what `kubectl apply` adds",
        lambda s: configure(s, "<" * 44_000),
    ),
    Example(
        bounds.objects_fit,
        "bytes of annotations",
        lambda s: s.template()["metadata"].update(annotations={"a": "b" * (1 << 18)}),
    ),
    Example(
        bounds.numbers_are_in_range,
        "defaultMode: 600 is not from 0 to 511",
        lambda s: s.pod()["volumes"][0]["projected"].update(defaultMode=600),
    ),
    Example(
        bounds.numbers_are_in_range,
        "LeaderWorkerSet vllm/vllm-giant: periodSeconds: 0 is",
        lambda s: s.container(GIANT)["readinessProbe"].update(periodSeconds=0),
    ),
    Example(
        bounds.numbers_are_in_range,
        "port: 80000 is",
        lambda s: s.spec("Service poolgate")["ports"][0].update(port=80000),
    ),
    Example(
        bounds.numbers_are_in_range,
        "stabilizationWindowSeconds: 7200 is",
        lambda s: s.spec("ScaledObject vllm-chat").update(
            advanced={
                "horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 7200}}}
            }
        ),
    ),
    Example(
        bounds.words_are_known,
        "restartPolicy: always is not one of Always, Never, OnFailure",
        lambda s: s.pod(GIANT).update(restartPolicy="always"),
    ),
    Example(
        bounds.words_are_known,
        "policyTypes: egress",
        lambda s: s.spec("NetworkPolicy poolgate")["policyTypes"].append("egress"),
    ),
    Example(
        bounds.words_are_known,
        "type: Rolling is not one of Recreate, RollingUpdate",
        lambda s: s.spec("Deployment poolgate")["strategy"].update(type="Rolling"),
    ),
    # images
    Example(
        images.images_are_pinned,
        "poolgate:latest is not pinned",
        lambda s: s.container().update(image="poolgate:latest"),
    ),
    Example(
        images.images_are_pinned,
        "vllm/vllm-openai is not pinned",
        lambda s: s.container(CHAT).update(image="vllm/vllm-openai"),
    ),
    Example(
        images.images_are_pinned, "v0 is not pinned", lambda s: s.container(CHAT).update(image="vllm/vllm-openai:v0")
    ),
    Example(
        images.an_image_has_one_version,
        "v0.31.0, vllm/vllm-openai:v0.32.0",
        lambda s: s.container(CHAT).update(image="vllm/vllm-openai:v0.31.0"),
    ),
    Example(images.our_image_is_this_version, "poolgate:0.0.9", lambda s: s.container().update(image="poolgate:0.0.9")),
    Example(images.images_are_pulled_once, "imagePullPolicy", lambda s: s.container().update(imagePullPolicy="Always")),
    # naming
    Example(
        naming.names_are_valid,
        "its name 'Pool_gate'",
        lambda s: s["Service poolgate"]["metadata"].update(name="Pool_gate"),
    ),
    Example(
        naming.names_are_valid,
        "port 'metrics-and-more'",
        lambda s: s.container()["ports"][1].update(name="metrics-and-more"),
    ),
    Example(naming.names_are_valid, "volume 'Files'", lambda s: s.pod()["volumes"][0].update(name="Files")),
    Example(
        naming.names_are_valid, "entry 'a/b'", lambda s: s["ConfigMap poolgate-config"]["data"].update({"a/b": ""})
    ),
    Example(
        naming.labels_are_valid, "Qwen/Qwen3-8B", lambda s: s[CHAT]["metadata"]["labels"].update(model="Qwen/Qwen3-8B")
    ),
    Example(
        naming.names_are_valid, "its name '4chan'", lambda s: s["Service poolgate"]["metadata"].update(name="4chan")
    ),
    Example(
        naming.names_are_valid, "variable '4TH'", lambda s: s.container()["env"].append({"name": "4TH", "value": "a"})
    ),
    Example(
        naming.labels_are_valid,
        "labels poolgate.dev/a/b",
        lambda s: s[CHAT]["metadata"]["labels"].update({"poolgate.dev/a/b": "c"}),
    ),
    Example(
        naming.selectors_are_valid,
        "Service poolgate/poolgate: selects by model: 'Qwen/Qwen3-8B'",
        lambda s: s.spec("Service poolgate")["selector"].update(model="Qwen/Qwen3-8B"),
    ),
    Example(
        naming.selectors_are_valid,
        "selects by -a: 'b'",
        lambda s: s.pod()["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"].update({"-a": "b"}),
    ),
    Example(
        naming.selectors_are_valid,
        "poolgate.dev/pool Exists ['chat']",
        lambda s: s.spec("PodMonitor vllm")["selector"]["matchExpressions"][0].update(values=["chat"]),
    ),
    Example(
        naming.selectors_are_valid,
        "poolgate.dev/pool In []",
        lambda s: s.spec("PodMonitor vllm")["selector"]["matchExpressions"][0].update(operator="In"),
    ),
    Example(
        naming.selectors_are_valid,
        "poolgate.dev/pool Gt ['20Gi']",
        lambda s: s.spec("PodMonitor vllm")["selector"]["matchExpressions"][0].update(operator="Gt", values=["20Gi"]),
    ),
    Example(
        naming.namespaces_come_first,
        "Role vllm/poolgate: comes before its namespace",
        lambda s: s.objects.append(s.drop("Namespace vllm")),
    ),
    Example(
        naming.labels_are_valid, "annotations a: True", lambda s: s[CHAT]["metadata"].update(annotations={"a": True})
    ),
    Example(
        naming.everything_is_labelled,
        "app.kubernetes.io/name on itself",
        lambda s: s["Service poolgate"]["metadata"].pop("labels"),
    ),
    Example(
        naming.everything_is_labelled,
        "part-of: poolgate on its pods",
        lambda s: s.template()["metadata"]["labels"].pop(naming.PART_OF),
    ),
    Example(
        naming.everything_is_labelled,
        "differ on its pods",
        lambda s: s.template(CHAT)["metadata"]["labels"].update({naming.POOL: "small"}),
    ),
    Example(
        naming.only_gateways_bear_the_gateways_name,
        "counted as gateways",
        lambda s: s.container().update(args=["secrets", "a"]),
    ),
    Example(
        naming.namespaces_are_declared,
        "names no namespace",
        lambda s: s["Service poolgate"]["metadata"].pop("namespace"),
    ),
    Example(naming.namespaces_are_declared, "the namespace vlm", lambda s: s[CHAT]["metadata"].update(namespace="vlm")),
    Example(
        naming.namespaces_are_declared,
        "lives in no namespace",
        lambda s: s["Namespace vllm"]["metadata"].update(namespace="vllm"),
    ),
    Example(naming.nothing_is_there_twice, "2 times", lambda s: s.add(s["Service poolgate"])),
    Example(
        naming.namespaces_enforce_restricted,
        "Namespace vllm",
        lambda s: s["Namespace vllm"]["metadata"]["labels"].update({"pod-security.kubernetes.io/enforce": "baseline"}),
    ),
    # ports
    Example(
        ports.ports_of_a_pod_are_distinct, "the name http", lambda s: s.container()["ports"][1].update(name="http")
    ),
    Example(
        ports.ports_of_a_pod_are_distinct,
        "containerPort 8000",
        lambda s: s.container()["ports"][1].update(containerPort=8000),
    ),
    Example(
        ports.services_lead_to_ports,
        "has no port htpp",
        lambda s: s.spec("Service poolgate")["ports"][0].update(targetPort="htpp"),
    ),
    Example(
        ports.services_lead_to_ports,
        "has no port 80",
        lambda s: s.spec("Service poolgate")["ports"][0].update(targetPort=80),
    ),
    Example(
        ports.services_lead_to_ports,
        "the port http leads to ops",
        lambda s: s.spec("Service poolgate")["ports"][0].update(targetPort="ops"),
    ),
    Example(
        ports.probes_ask_ports,
        "livenessProbe of poolgate asks port op,",
        lambda s: s.container()["livenessProbe"]["httpGet"].update(port="op"),
    ),
    Example(
        ports.probes_ask_ports,
        "preStop",
        lambda s: s.container().update(lifecycle={"preStop": {"httpGet": {"path": "/", "port": 81}}}),
    ),
    Example(
        ports.monitors_find_ports,
        "ServiceMonitor poolgate/poolgate: finds no Service",
        lambda s: s.spec("ServiceMonitor poolgate").update(selector={"matchLabels": {"a": "b"}}),
    ),
    Example(
        ports.monitors_find_ports,
        "has no port metrics",
        lambda s: s.spec("ServiceMonitor poolgate")["endpoints"][0].update(port="metrics"),
    ),
    Example(
        ports.monitors_find_ports,
        "PodMonitor poolgate/vllm: finds no pod",
        lambda s: s.spec("PodMonitor vllm").pop("namespaceSelector"),
    ),
    Example(
        ports.monitors_find_ports,
        "vllm-chat has no port metrics",
        lambda s: s.spec("PodMonitor vllm")["podMetricsEndpoints"][0].update(port="metrics"),
    ),
    Example(
        ports.routes_lead_to_services,
        "Ingress poolgate/poolgate: leads to poolgate:ops",
        lambda s: s.spec("Ingress poolgate")["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"].update(
            name="ops"
        ),
    ),
    Example(
        ports.routes_lead_to_services,
        "HTTPRoute poolgate/poolgate: leads to poolgate:80",
        lambda s: s.spec("HTTPRoute poolgate")["rules"][0]["backendRefs"][0].update(port=80),
    ),
    Example(
        ports.addresses_are_of_services,
        "asks rediss:6379",
        lambda s: s.container()["env"][1].update(value="redis://:$(REDIS_PASSWORD)@rediss:6379/0"),
    ),
    Example(
        ports.addresses_are_of_services,
        "asks poolgate-ops.poolgate.svc:9091",
        lambda s: s.spec("ScaledObject vllm-chat")["triggers"][0]["metadata"].update(
            serverAddress="http://poolgate-ops.poolgate.svc:9091"
        ),
    ),
    Example(ports.addresses_are_of_services, "asks otel:4318", lambda s: configure(s, "at: http://otel:4318")),
    # references
    Example(
        references.config_maps_and_secrets_are_there,
        "no ConfigMap poolgate-config",
        lambda s: s.drop("ConfigMap poolgate-config"),
    ),
    Example(
        references.config_maps_and_secrets_are_there,
        "no Secret poolgate-key",
        lambda s: sources(s)[1]["secret"].update(name="poolgate-key"),
    ),
    Example(
        references.config_maps_and_secrets_are_there,
        "has no entry pasword",
        lambda s: s.container()["env"][0]["valueFrom"]["secretKeyRef"].update(key="pasword"),
    ),
    Example(
        references.config_maps_and_secrets_are_there,
        "has no entry key",
        lambda s: sources(s)[2]["secret"]["items"][0].update(key="key"),
    ),
    Example(
        references.config_maps_are_used, "nobody uses it", lambda s: s.twin("ConfigMap poolgate-config", "left-over")
    ),
    Example(
        references.files_that_are_named_are_mounted,
        "has no /etc/poolgate/gateway.yml",
        lambda s: s.container().update(args=["serve", "--config", "/etc/poolgate/gateway.yml"]),
    ),
    Example(
        references.files_that_are_named_are_mounted,
        "has no /data",
        lambda s: s.container(CHAT)["args"].append("--storage.tsdb.path=/data"),
    ),
    Example(
        references.files_of_a_volume_do_not_cover_each_other,
        "keys.yaml twice",
        lambda s: sources(s)[2]["secret"]["items"][0].update(path="keys.yaml"),
    ),
    Example(
        references.volumes_are_mounted,
        "mounts file, which is no volume",
        lambda s: s.container()["volumeMounts"][0].update(name="file"),
    ),
    Example(
        references.volumes_are_mounted, "nothing mounts the volume files", lambda s: s.container().pop("volumeMounts")
    ),
    Example(
        references.volumes_are_mounted,
        "two at /models",
        lambda s: s.container(CHAT)["volumeMounts"][1].update(mountPath="/models/"),
    ),
    Example(
        references.service_accounts_are_there,
        "no ServiceAccount pool",
        lambda s: s.pod().update(serviceAccountName="pool"),
    ),
    Example(
        references.bindings_bind,
        "there is no Role pods",
        lambda s: s["RoleBinding poolgate"]["roleRef"].update(name="pods"),
    ),
    Example(references.bindings_bind, "nobody has it", lambda s: s.drop("RoleBinding poolgate")),
    Example(
        references.bindings_bind,
        "there is no ServiceAccount gateway",
        lambda s: s["RoleBinding poolgate"]["subjects"][0].update(name="gateway"),
    ),
    Example(references.bindings_bind, "no pod uses it", lambda s: s.pod().pop("serviceAccountName")),
    Example(
        references.autoscalers_scale, "there is no", lambda s: s.spec(SCALER)["scaleTargetRef"].update(name="gateway")
    ),
    Example(references.autoscalers_scale, "sets replicas", lambda s: s.spec(CHAT).update(replicas=2)),
    Example(references.autoscalers_scale, "2 autoscalers", lambda s: s.twin("ScaledObject vllm-chat", "chat")),
    Example(
        references.triggers_have_their_authentication,
        "no TriggerAuthentication",
        lambda s: s.drop("TriggerAuthentication vllm-chat"),
    ),
    Example(
        references.triggers_have_their_authentication,
        "the entry token",
        lambda s: s.spec("TriggerAuthentication vllm-chat")["secretTargetRef"][0].update(key="token"),
    ),
    Example(
        references.claims_are_there,
        "no PersistentVolumeClaim model",
        lambda s: s.pod(CHAT)["volumes"][0]["persistentVolumeClaim"].update(claimName="model"),
    ),
    Example(
        references.claims_are_there, "nobody uses it", lambda s: s.twin("PersistentVolumeClaim models", "left-over")
    ),
    Example(references.claims_can_be_mounted_by_all, "several replicas", lambda s: one_node(s)),
    Example(
        references.claims_can_be_mounted_by_all,
        "before the old has gone",
        lambda s: (one_node(s), s.drop("ScaledObject vllm-chat")),
    ),
    Example(
        references.claims_can_be_mounted_by_all,
        "Deployment vllm/other want it",
        lambda s: (one_node(s, "ReadWriteOncePod"), s.twin(CHAT, "other")),
    ),
    Example(
        references.variables_are_defined_before_use,
        "REDIS_PASSWORD is not defined before",
        lambda s: s.container()["env"].reverse(),
    ),
    Example(
        references.variables_are_defined_before_use,
        "VLLM_API_KEY is not defined",
        lambda s: s.container(CHAT)["args"].append("--api-key=$(VLLM_API_KEY)"),
    ),
    Example(
        references.variables_are_defined_before_use,
        "defined twice",
        lambda s: s.container()["env"].append({"name": "REDIS_PASSWORD", "value": "a"}),
    ),
    # security
    Example(
        security.tokens_are_where_the_api_is_asked,
        "gives each of its pods a token",
        lambda s: s["ServiceAccount poolgate"].pop("automountServiceAccountToken"),
    ),
    Example(
        security.tokens_are_where_the_api_is_asked,
        "is None; has it rights: False",
        lambda s: s.pod(CHAT).pop("automountServiceAccountToken"),
    ),
    Example(
        security.tokens_are_where_the_api_is_asked,
        "is False; has it rights: True",
        lambda s: s.pod().update(automountServiceAccountToken=False),
    ),
    Example(security.rights_are_narrow, "whole cluster", lambda s: s["Role poolgate"].update(kind="ClusterRole")),
    Example(
        security.rights_are_narrow,
        "ServiceAccount default",
        lambda s: s["RoleBinding poolgate"]["subjects"][0].update(name="default"),
    ),
    Example(
        security.rights_are_narrow,
        "Group system:authenticated",
        lambda s: s["RoleBinding poolgate"]["subjects"][0].update(kind="Group", name="system:authenticated"),
    ),
    Example(security.rights_are_narrow, "asterisk", lambda s: s["Role poolgate"]["rules"][0].update(verbs=["*"])),
    Example(
        security.rights_are_narrow,
        "every Secret",
        lambda s: s["Role poolgate"]["rules"][0].update(resources=["secrets"]),
    ),
    Example(
        security.rights_are_narrow, "make itself more", lambda s: s["Role poolgate"]["rules"][0].update(verbs=["bind"])
    ),
    Example(
        security.services_stay_inside,
        "reached from outside",
        lambda s: s.spec("Service poolgate").update(type="LoadBalancer"),
    ),
    Example(
        security.services_stay_inside,
        "reached from outside",
        lambda s: s.spec("Service poolgate").update(type="NodePort"),
    ),
    Example(
        security.files_are_the_pods_own,
        "volume models is root's",
        lambda s: s.pod(CHAT)["securityContext"].pop("fsGroup"),
    ),
    Example(
        security.files_are_the_pods_own,
        "volume files is root's",
        lambda s: s.pod()["volumes"][0]["projected"].update(defaultMode=0o440),
    ),
    Example(security.no_pod_has_links, "enableServiceLinks", lambda s: s.pod().pop("enableServiceLinks")),
    Example(
        security.root_is_read_only,
        "readOnlyRootFilesystem",
        lambda s: s.container()["securityContext"].pop("readOnlyRootFilesystem"),
    ),
    Example(security.resources_are_set, "asks for no cpu", lambda s: s.container()["resources"]["requests"].pop("cpu")),
    Example(security.resources_are_set, "no limit of memory", lambda s: s.container()["resources"].pop("limits")),
    Example(
        security.resources_are_set, "a limit of CPU", lambda s: s.container()["resources"]["limits"].update(cpu="2")
    ),
    Example(
        security.resources_are_set,
        "more memory than",
        lambda s: s.container()["resources"]["requests"].update(memory="2Gi"),
    ),
    Example(
        security.resources_are_set,
        "nvidia.com/gpu",
        lambda s: s.container(CHAT)["resources"]["limits"].pop("nvidia.com/gpu"),
    ),
    Example(
        security.scratch_is_bounded, "no sizeLimit", lambda s: s.pod(CHAT)["volumes"][1]["emptyDir"].pop("sizeLimit")
    ),
    Example(
        security.scratch_is_bounded,
        "fill the memory",
        lambda s: s.pod(CHAT)["volumes"][1]["emptyDir"].update(sizeLimit="32Gi"),
    ),
    Example(
        security.secrets_are_no_arguments,
        "REDIS_PASSWORD among its arguments",
        lambda s: s.container().update(args=["serve", "--password=$(REDIS_PASSWORD)"]),
    ),
    Example(
        security.secrets_are_no_arguments,
        "POOLGATE_LIMITS__REDIS_URL among its arguments",
        lambda s: s.container().update(args=["serve", "$(POOLGATE_LIMITS__REDIS_URL)"]),
    ),
    Example(
        security.secrets_are_not_written_down,
        "Secret poolgate/poolgate-config: is written",
        lambda s: s["ConfigMap poolgate-config"].update(kind="Secret"),
    ),
    Example(
        security.secrets_are_not_written_down,
        "HF_TOKEN is written down",
        lambda s: s.container(CHAT).update(env=[{"name": "HF_TOKEN", "value": "hf_abc"}]),
    ),
    Example(
        security.secrets_are_not_written_down,
        "REDIS_URL has a password",
        lambda s: s.container()["env"][1].update(value="redis://:hunter2@poolgate-ops:9090/0"),
    ),
    Example(
        security.secrets_are_not_written_down,
        "among its arguments",
        lambda s: s.container(CHAT)["args"].append("--api-key=abc"),
    ),
    Example(
        security.secrets_are_not_written_down,
        "gateway.yaml has a password",
        lambda s: configure(s, "a: redis://u:hunter2@redis"),
    ),
    # selecting
    Example(
        selecting.workloads_select_their_own_pods,
        "does not find its own",
        lambda s: s.spec(CHAT)["selector"]["matchLabels"].update({naming.POOL: "small"}),
    ),
    Example(
        selecting.no_two_workloads_select_the_same_pods, "finds pods of the other", lambda s: s.twin(CHAT, "vllm-other")
    ),
    Example(
        selecting.no_two_workloads_select_the_same_pods,
        "finds pods of the other",
        lambda s: s.spec(CHAT).update(selector={"matchLabels": {naming.NAME: "vllm"}}),
    ),
    Example(
        selecting.services_find_pods_of_one_kind,
        "finds no pod",
        lambda s: s.spec("Service poolgate")["selector"].update({naming.NAME: "gateway"}),
    ),
    Example(
        selecting.services_find_pods_of_one_kind,
        "selects nothing",
        lambda s: s.spec("Service poolgate").pop("selector"),
    ),
    Example(
        selecting.services_find_pods_of_one_kind,
        "['poolgate', 'vllm']",
        lambda s: (
            s.spec("Service poolgate").update(selector={naming.PART_OF: "poolgate"}),
            s[CHAT]["metadata"].update(namespace=HERE),
        ),
    ),
    Example(
        selecting.budgets_find_pods_of_one_kind, "finds no pod", lambda s: s[BUDGET]["metadata"].update(namespace=THERE)
    ),
    Example(
        selecting.budgets_do_not_overlap,
        "2 disruption budgets",
        lambda s: s.twin("PodDisruptionBudget poolgate", "other"),
    ),
    Example(
        selecting.pods_spread_from_their_own,
        "topology spread",
        lambda s: s.pod()["topologySpreadConstraints"][0].update(labelSelector={"matchLabels": {"app": "poolgate"}}),
    ),
    Example(
        selecting.pods_spread_from_their_own,
        "anti-affinity",
        lambda s: s.pod()["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0][
            "podAffinityTerm"
        ].update(labelSelector={"matchLabels": {"app": "poolgate"}}),
    ),
    Example(
        selecting.network_policies_find_pods,
        "finds no pod",
        lambda s: s["NetworkPolicy poolgate"]["metadata"].update(namespace=THERE),
    ),
    # standard: its rules are gone through below
    Example(
        standard.pods_are_restricted,
        "Deployment poolgate/poolgate: hostNetwork",
        lambda s: s.pod().update(hostNetwork=True),
    ),
    # stopping
    Example(
        stopping.gateways_may_drain, "606 s of lingering", lambda s: s.pod().update(terminationGracePeriodSeconds=606)
    ),
    Example(stopping.gateways_may_drain, "30 s of grace", lambda s: s.pod().pop("terminationGracePeriodSeconds")),
    Example(
        stopping.drains_spare_streams,
        "the pool giant may take 3600 s",
        lambda s: configure(s, "server: {drain_seconds: 600}\npools: {chat: {stream_seconds: 600}}"),
    ),
    Example(
        stopping.engines_may_finish,
        "619 s of grace for 620 s",
        lambda s: s.pod(CHAT).update(terminationGracePeriodSeconds=619),
    ),
    Example(
        stopping.engines_finish_their_streams,
        "ends after 60 s",
        lambda s: s.container(CHAT)["args"].append("--shutdown-timeout=60"),
    ),
    Example(stopping.engines_say_how_they_end, "no --shutdown-timeout", lambda s: s.container(CHAT)["args"].pop()),
    Example(stopping.engines_say_how_they_end, "no preStop", lambda s: s.container(GIANT).pop("lifecycle")),
    Example(
        stopping.what_listens_is_probed, "vllm has no startupProbe", lambda s: s.container(GIANT).pop("startupProbe")
    ),
    Example(
        stopping.what_listens_is_probed,
        "waits less than 5 s",
        lambda s: s.container()["readinessProbe"].pop("timeoutSeconds"),
    ),
    Example(
        stopping.liveness_is_more_patient_than_readiness,
        "killed as soon as",
        lambda s: s.container(CHAT)["livenessProbe"].update(failureThreshold=1),
    ),
    Example(
        stopping.liveness_is_more_patient_than_readiness,
        "livenessProbe is not /livez",
        lambda s: s.container()["livenessProbe"]["httpGet"].update(path="/readyz"),
    ),
    Example(
        stopping.liveness_is_more_patient_than_readiness,
        "livenessProbe is not /livez of the port ops",
        lambda s: s.container()["livenessProbe"]["httpGet"].update(port="http"),
    ),
    Example(stopping.budgets_leave_a_way, "of 2 pods", lambda s: s.spec(BUDGET).update(maxUnavailable=0)),
    Example(stopping.budgets_leave_a_way, "of 2 pods", lambda s: keep(s, 2)),
    Example(stopping.budgets_leave_a_way, "of 1 pods", lambda s: (s.drop(SCALER), keep(s, "51%"))),
    Example(
        stopping.rollouts_leave_a_way,
        "neither add",
        lambda s: s.spec("Deployment poolgate")["strategy"]["rollingUpdate"].update(maxSurge=0),
    ),
    Example(
        stopping.rollouts_of_gateways_lose_none,
        "takes a gateway away",
        lambda s: s.spec("Deployment poolgate").pop("strategy"),
    ),
    Example(stopping.loading_is_within_the_deadline, "1800 s", lambda s: s.spec(CHAT).pop("progressDeadlineSeconds")),
]


@pytest.mark.parametrize("check", [*checks.EVERY, *checks.WHOLE], ids=checks.named)
def test_a_check_is_silent_where_nothing_is_wrong(check: Check) -> None:
    assert check(SAMPLE) == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: f"{checks.named(each.check)}: {each.words}")
def test_a_check_finds_what_is_wrong(example: Example) -> None:
    sample = Sample()
    example.breaks(sample)
    assert example.words in "; ".join(example.check(tuple(sample.objects)))


def test_every_check_has_something_that_it_finds() -> None:
    assert {example.check for example in EXAMPLES} == {*checks.EVERY, *checks.WHOLE}


def test_every_check_is_made() -> None:
    """One that stands in a module of checks and in no list would find nothing."""
    modules = (admission, bounds, images, naming, ports, references, security, selecting, standard, stopping)
    found = {
        thing
        for module in modules
        for name, thing in vars(module).items()
        if callable(thing)
        and getattr(thing, "__module__", "") == module.__name__
        and not name.startswith("_")
        and getattr(thing, "__annotations__", {}) == {"built": Build, "return": list[str]}
    }
    assert found == {*checks.EVERY, *checks.WHOLE}


# The Pod Security Standard, rule by rule


def on_pod(**fields: Any) -> Callable[[Sample], Any]:
    return lambda sample: sample.pod().update(fields)


def on_container(**fields: Any) -> Callable[[Sample], Any]:
    return lambda sample: sample.container().update(fields)


def in_its_context(**fields: Any) -> Callable[[Sample], Any]:
    return lambda sample: sample.container()["securityContext"].update(fields)


def in_the_pods_context(**fields: Any) -> Callable[[Sample], Any]:
    return lambda sample: sample.pod()["securityContext"].update(fields)


REFUSED = [
    (on_pod(hostNetwork=True), "hostNetwork"),
    (on_pod(hostPID=True), "hostPID"),
    (on_pod(hostIPC=True), "hostIPC"),
    (on_pod(volumes=[{"name": "a", "hostPath": {"path": "/"}}]), "volume a is of the kind hostPath"),
    (on_pod(volumes=[{"name": "a", "nfs": {"server": "b", "path": "/"}}]), "volume a is of the kind nfs"),
    (on_container(ports=[{"containerPort": 80, "hostPort": 80}]), "hostPort"),
    (on_container(livenessProbe={"httpGet": {"host": "10.0.0.1", "port": 80}}), "another host"),
    (on_container(lifecycle={"preStop": {"tcpSocket": {"host": "10.0.0.1", "port": 80}}}), "another host"),
    (in_its_context(privileged=True), "privileged"),
    (in_its_context(allowPrivilegeEscalation=True), "allowPrivilegeEscalation"),
    (in_its_context(allowPrivilegeEscalation=None), "allowPrivilegeEscalation"),
    (in_its_context(capabilities={"drop": ["NET_RAW"]}), "does not drop all"),
    (in_its_context(capabilities={"drop": ["ALL"], "add": ["SYS_PTRACE"]}), "adds capabilities"),
    (in_its_context(procMount="Unmasked"), "procMount"),
    (in_its_context(runAsNonRoot=False), "runAsNonRoot"),
    (in_its_context(runAsUser=0), "runAsUser: 0"),
    (in_its_context(seccompProfile={"type": "Unconfined"}), "seccomp profile"),
    (in_its_context(appArmorProfile={"type": "Unconfined"}), "AppArmor profile"),
    (in_its_context(seLinuxOptions={"type": "spc_t"}), "SELinux"),
    (in_its_context(windowsOptions={"hostProcess": True}), "hostProcess"),
    (in_the_pods_context(runAsNonRoot=None), "no runAsNonRoot: true, nor has the pod"),
    (in_the_pods_context(runAsUser=0), "runAsUser: 0"),
    (in_the_pods_context(seLinuxOptions={"user": "root"}), "SELinux"),
    (in_the_pods_context(sysctls=[{"name": "kernel.msgmax", "value": "1"}]), "sysctl kernel.msgmax"),
    (lambda sample: sample.pod()["securityContext"].pop("seccompProfile"), "no seccompProfile, nor has the pod"),
    (on_pod(initContainers=[{"name": "first", "image": "a:1.0.0"}]), "first has no allowPrivilegeEscalation"),
    (
        lambda sample: sample.template()["metadata"].update(
            annotations={"container.apparmor.security.beta.kubernetes.io/poolgate": "unconfined"}
        ),
        "AppArmor unconfined",
    ),
]
ALLOWED = [
    in_its_context(capabilities={"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}),
    in_its_context(seccompProfile={"type": "Localhost", "localhostProfile": "a.json"}),
    in_the_pods_context(sysctls=[{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]),
    on_pod(volumes=[{"name": "a", "ephemeral": {}}, {"name": "b", "emptyDir": {}}, {"name": "c", "csi": {}}]),
]


@pytest.mark.parametrize(("breaks", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_the_standard_refuses(breaks: Callable[[Sample], Any], words: str) -> None:
    sample = Sample()
    breaks(sample)
    assert words in "; ".join(standard.violations(sample.template()))


@pytest.mark.parametrize("changes", ALLOWED)
def test_the_standard_allows(changes: Callable[[Sample], Any]) -> None:
    sample = Sample()
    changes(sample)
    assert standard.violations(sample.template()) == []


def test_a_namespace_that_enforces_nothing_is_left_alone() -> None:
    sample = Sample()
    sample.pod().update(hostNetwork=True)
    sample["Namespace poolgate"]["metadata"]["labels"].pop("pod-security.kubernetes.io/enforce")
    assert standard.pods_are_restricted(tuple(sample.objects)) == []


def test_a_load_balancer_of_the_own_network_is_inside() -> None:
    sample = Sample()
    sample.spec("Service poolgate").update(type="LoadBalancer")
    sample["Service poolgate"]["metadata"]["annotations"] = dict(security.INTERNAL[:1])
    assert security.services_stay_inside(tuple(sample.objects)) == []


@pytest.mark.parametrize(
    ("text", "value"), [("100m", 0.1), ("1Gi", 1 << 30), ("2", 2), (3, 3), ("1.5Ki", 1536), ("1M", 1_000_000)]
)
def test_a_quantity_is_a_number(text: str | int, value: float) -> None:
    assert float(quantity(text)) == pytest.approx(value)


@pytest.mark.parametrize("text", ["1GB", "1 Gi", "", "Gi"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        quantity(text)
