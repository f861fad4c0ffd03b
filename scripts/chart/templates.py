"""Which manifest becomes which template, and where the values go."""

from collections.abc import Iterator, Mapping

from scripts.chart.places import Place, Template

COMPONENTS = "kustomize/components"


def component(name: str, when: str, files: Mapping[str, tuple[Place, ...]]) -> Iterator[Template]:
    """The templates of a component, of the same names."""
    for file, places in files.items():
        yield Template(f"{COMPONENTS}/{name}/{file}", f"{name}/{file}", places, when)


def labels(name: str) -> str:
    """The line of the labels, as every object has it."""
    return f"  labels: {{app.kubernetes.io/part-of: poolgate, app.kubernetes.io/name: {name}}}\n"


def restarted_by(config: str, name: str) -> Place:
    """A pod that reads its configuration once: kustomize has a suffix of the content in the ConfigMap's name."""
    checksum = f'{{{{ include (print $.Template.BasePath "/{config}") . | sha256sum }}}}'
    line = f"    {labels(name)}"
    return Place(line, f"{line}      annotations: {{checksum/config: {checksum}}}\n")


def found_by(name: str) -> Place:
    """An object that somebody's operator finds by labels of his."""
    return Place(
        labels(name),
        f"""\
  labels:
    app.kubernetes.io/part-of: poolgate
    app.kubernetes.io/name: {name}
    {{{{- with .Values.prometheusOperator.labels }}}}
    {{{{- toYaml . | nindent 4 }}}}
    {{{{- end }}}}
""",
    )


# Uninstalling leaves a namespace, since Secrets are in it that are no part of the release.
KEPT_NAMESPACE = Place("  labels:\n", "  annotations: {helm.sh/resource-policy: keep}\n  labels:\n")


def kept(name: str, first: str) -> Place:
    """A volume, whose spec begins so: uninstalling leaves it."""
    claim = f"{labels(name)}spec:\n  {first}"
    return Place(claim, f"  annotations: {{helm.sh/resource-policy: keep}}\n{claim}")


def job(name: str, comment: str) -> tuple[Place, ...]:
    """A Job of each revision: Helm cannot change the one before, but removes it.

    So it need not expire. And it must not: with `--wait` Helm 4 waits until everything in a release is there, and it
    would wait in vain for a Job that has gone by itself (helm/helm#31786).
    """
    return (
        Place(f"\n  name: {name}\n", f"\n  name: {name}-{{{{ .Release.Revision }}}}\n"),
        Place(
            "  # A Job's template cannot be changed: it goes when it is done, and the next `apply` makes it anew. "
            + comment,
            "  # A Job's template cannot be changed: each revision has its own, and Helm removes the one before. "
            + comment,
        ),
        Place("  ttlSecondsAfterFinished: 60\n", ""),
    )


GATEWAY = (
    Place(
        '            requests: {cpu: "1", memory: 256Mi}\n            limits: {memory: 1Gi}\n',
        "            {{- toYaml .Values.gateway.resources | nindent 12 }}\n",
    ),
    Place(
        "terminationGracePeriodSeconds: 620",
        "terminationGracePeriodSeconds: {{ add 20 (ceil .Values.gateway.config.server.drain_seconds) }}",
    ),
    Place(
        "          args: [serve, --config, /etc/poolgate/gateway.yaml]\n",
        """\
          args: [serve, --config, /etc/poolgate/gateway.yaml]
          {{- if or .Values.gateway.environment .Values.redis.enabled .Values.otel.enabled }}
          env:
            {{- range .Values.gateway.environment }}
            - name: {{ .name }}
              valueFrom:
                secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}
            {{- end }}
            {{- if .Values.redis.enabled }}
            - name: REDIS_PASSWORD
              valueFrom:
                secretKeyRef: {name: redis, key: password}
            - name: POOLGATE_LIMITS__REDIS_URL
              value: redis://poolgate:$(REDIS_PASSWORD)@redis:6379/0
            {{- end }}
            {{- if .Values.otel.enabled }}
            - {name: POOLGATE_TRACING__ENDPOINT, value: "http://otel-collector:4318"}
            {{- end }}
          {{- end }}
""",
    ),
    Place(
        "                  items: [{key: api-key, path: vllm-key}]\n",
        """\
                  items: [{key: api-key, path: vllm-key}]
              {{- with .Values.gateway.certificate }}
              - secret:
                  name: {{ . }}
                  items: [{key: tls.crt, path: tls/tls.crt}, {key: tls.key, path: tls/tls.key}]
              {{- end }}
""",
    ),
)
AUTOSCALER = (
    Place("minReplicas: 2", "minReplicas: {{ .Values.gateway.replicas.min }}"),
    Place("maxReplicas: 10", "maxReplicas: {{ .Values.gateway.replicas.max }}"),
)


def pool(names: int, instances: int, pools: int) -> tuple[Place, ...]:
    """The places of a pool's name, each so many times."""
    return (
        Place("name: vllm-chat\n", "name: vllm-{{ .name }}\n", names),
        Place("app.kubernetes.io/instance: chat", "app.kubernetes.io/instance: {{ quote .name }}", instances),
        Place("poolgate.dev/pool: chat", "poolgate.dev/pool: {{ quote .name }}", pools),
    )


SIMULATOR = (
    *pool(1, 2, 2),
    Place("  replicas: 3\n", "  replicas: {{ .replicas }}\n"),
    Place("            - --model=qwen3-8b\n", '            - {{ printf "--model=%s" .model | quote }}\n'),
)
VLLM = (
    *pool(1, 2, 4),
    Place("  replicas: 1\n", '  {{- if not .scale }}\n  replicas: {{ dig "replicas" 1 . }}\n  {{- end }}\n'),
    Place(
        "    rollingUpdate: {maxSurge: 0, maxUnavailable: 1}\n",
        """\
    {{- if .gpus }}
    rollingUpdate: {maxSurge: 0, maxUnavailable: 1}
    {{- else }}
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
    {{- end }}
""",
    ),
    Place(
        '        poolgate.dev/priority: "true"\n',
        """\
        poolgate.dev/priority: "true"
        {{- with .maxInFlight }}
        poolgate.dev/max-in-flight: {{ int . | quote }}
        {{- end }}
""",
    ),
    Place(
        "      # Preferred, not required",
        "      {{- if and .gpus (or .gpuMemoryOver (gt (int .gpus) 1)) }}\n      # Preferred, not required",
    ),
    Place(
        """\
                  # MiB of one GPU.
                  - {key: nvidia.com/gpu.memory, operator: Gt, values: ["20000"]}
      tolerations:
        - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
""",
        """\
                  {{- with .gpuMemoryOver }}
                  # MiB of one GPU.
                  - {key: nvidia.com/gpu.memory, operator: Gt, values: [{{ int . | quote }}]}
                  {{- end }}
                  {{- if gt (int .gpus) 1 }}
                  - {key: nvidia.com/gpu.count, operator: Gt, values: [{{ sub .gpus 1 | quote }}]}
                  {{- end }}
      {{- end }}
      {{- if .gpus }}
      tolerations:
        - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
      {{- end }}
""",
    ),
    Place(
        "image: {{ quote .Values.images.vllm }}",
        "image: {{ if .gpus }}{{ quote .Values.images.vllm }}{{ else }}{{ quote .Values.images.vllmCpu }}{{ end }}",
    ),
    Place("            - Qwen/Qwen3-8B\n", "            - {{ quote .model }}\n"),
    Place(
        "            - --served-model-name=qwen3-8b\n",
        '            - {{ printf "--served-model-name=%s" .servedName | quote }}\n',
    ),
    Place(
        """\
            # 16 GB of weights, and room for a context on a GPU of 24 GB; more GPU, more contexts at once.
            - --max-model-len=16384
            - --gpu-memory-utilization=0.90
""",
        """\
            {{- range .args }}
            - {{ quote . }}
            {{- end }}
""",
    ),
    Place("--max-num-queued-reqs=256", "--max-num-queued-reqs={{ mul 2 (.maxInFlight | default 128) }}"),
    # They are the model's, so they come with the values.
    Place(
        """\
            - --enable-auto-tool-choice
            - --tool-call-parser=hermes
            - --reasoning-parser=qwen3
""",
        "",
    ),
    Place(
        '            - {name: VLLM_NO_USAGE_STATS, value: "1"}\n',
        """\
            {{- if not .gpus }}
            # As many threads as cores were asked for, on whichever cores there are.
            - name: OMP_NUM_THREADS
              valueFrom:
                resourceFieldRef: {resource: requests.cpu}
            - {name: VLLM_CPU_OMP_THREADS_BIND, value: nobind}
            {{- end }}
            - {name: VLLM_NO_USAGE_STATS, value: "1"}
""",
    ),
    Place(
        """\
            requests: {cpu: "4", memory: 24Gi, nvidia.com/gpu: "1"}
            limits: {memory: 40Gi, nvidia.com/gpu: "1"}
""",
        """\
            requests:
              {{- toYaml .resources.requests | nindent 14 }}
              {{- if .gpus }}
              nvidia.com/gpu: {{ quote .gpus }}
              {{- end }}
            limits:
              {{- toYaml .resources.limits | nindent 14 }}
              {{- if .gpus }}
              nvidia.com/gpu: {{ quote .gpus }}
              {{- end }}
""",
    ),
    Place(
        """\
        # The first of them: what the component model-cache puts the shared volume in the place of.
        - name: models
          emptyDir: {sizeLimit: 60Gi}
""",
        """\
        - name: models
          {{- if .Values.modelCache.enabled }}
          persistentVolumeClaim: {claimName: model-cache}
          {{- else }}
          emptyDir: {sizeLimit: {{ .modelSpace }}}
          {{- end }}
""",
    ),
    Place("sizeLimit: 8Gi", "sizeLimit: {{ .sharedMemory }}"),
)
SCALED = (
    Place("app.kubernetes.io/instance: chat", "app.kubernetes.io/instance: {{ quote .name }}"),
    Place("name: vllm-chat", "name: vllm-{{ .name }}", 2),
    Place("minReplicaCount: 1\n", "minReplicaCount: {{ .scale.min }}\n"),
    Place("maxReplicaCount: 8\n", "maxReplicaCount: {{ .scale.max }}\n"),
    Place("http://prometheus-operated.monitoring.svc:9090", "{{ .Values.keda.prometheus }}", 2),
    Place('pool="chat"', 'pool="{{ .name }}"', 3),
    Place("`pools.chat.hold_empty_seconds`", "`pools.NAME.hold_empty_seconds`"),
)
CLAIM = (
    kept("model-loader", "# ReadWriteMany"),
    Place("requests: {storage: 100Gi}", "requests: {storage: {{ .Values.modelCache.size }}}"),
    Place(
        "  accessModes: [ReadWriteMany]\n",
        """\
  accessModes: [ReadWriteMany]
  {{- with .Values.modelCache.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
""",
    ),
    Place("The storage class is the overlay's to name: many", "The storage class is `modelCache.storageClass`: many"),
)
LOADER = (
    *job("model-loader", "What is there it\n"),
    Place(
        """\
        # One for each model; a second pool's is patched in beside it.
        - name: chat
          image: {{ quote .Values.images.vllm }}
""",
        """\
        # One for each model.
        {{- range .Values.pools }}
        - name: {{ quote .name }}
          image: {{ if .gpus }}{{ quote $.Values.images.vllm }}{{ else }}{{ quote $.Values.images.vllmCpu }}{{ end }}
""",
    ),
    Place("          args: [Qwen/Qwen3-8B]\n", "          args: [{{ quote .model }}]\n"),
    Place(
        "            - {name: tmp, mountPath: /tmp}\n",
        "            - {name: tmp, mountPath: /tmp}\n        {{- end }}\n",
    ),
)
MONITORS = (found_by("poolgate"), found_by("vllm"))
MONITORING = Place(
    "kubernetes.io/metadata.name: monitoring",
    "kubernetes.io/metadata.name: {{ .Values.prometheusOperator.namespace }}",
    2,
)
WEBUI = (
    kept("open-webui", "accessModes"),
    Place("requests: {storage: 5Gi}", "requests: {storage: {{ .Values.openWebui.storage }}}"),
    Place(
        "          ports:\n            - {name: http, containerPort: 8080}\n",
        """\
            {{- with .Values.openWebui.host }}
            - {name: WEBUI_URL, value: "https://{{ . }}"}
            - {name: CORS_ALLOW_ORIGIN, value: "https://{{ . }}"}
            {{- end }}
          ports:
            - {name: http, containerPort: 8080}
""",
    ),
)
PARENTS = (
    Place("  parentRefs:\n", "  parentRefs:\n    {{- with .Values.route.gateway }}\n"),
    Place(
        "name: public, namespace: gateways, sectionName: https}\n",
        "name: {{ .name }}, namespace: {{ .namespace }}, sectionName: {{ .section }}}\n    {{- end }}\n",
    ),
)
INGRESS = (
    Place("ingressClassName: nginx", "ingressClassName: {{ .Values.ingress.class }}"),
    Place(
        "{hosts: [llm.example.com], secretName: poolgate-tls}",
        "{hosts: [{{ quote .Values.ingress.host }}], secretName: {{ .Values.ingress.tlsSecret }}}",
    ),
    Place("host: llm.example.com", "host: {{ quote .Values.ingress.host }}"),
)

TEMPLATES = (
    Template(
        "kustomize/base/namespaces.yaml",
        "gateway/namespace.yaml",
        (Place("  name: poolgate\n", "  name: {{ .Release.Namespace }}\n"), KEPT_NAMESPACE),
        ".Values.namespaces.release",
        document=0,
    ),
    Template(
        "kustomize/base/namespaces.yaml",
        "pools/namespace.yaml",
        (Place("  name: vllm\n", "  name: {{ .Values.vllmNamespace }}\n"), KEPT_NAMESPACE),
        ".Values.namespaces.vllm",
        document=1,
    ),
    Template("kustomize/base/service-account.yaml", "gateway/service-account.yaml"),
    Template("kustomize/base/roles.yaml", "gateway/roles.yaml"),
    Template("kustomize/base/deployment.yaml", "gateway/deployment.yaml", GATEWAY),
    Template("kustomize/base/services.yaml", "gateway/services.yaml"),
    Template("kustomize/base/autoscaler.yaml", "gateway/autoscaler.yaml", AUTOSCALER),
    Template("kustomize/base/disruption-budget.yaml", "gateway/disruption-budget.yaml"),
    Template("kustomize/base/network-policies.yaml", "gateway/network-policies.yaml"),
    *component("redis", ".Values.redis.enabled", {"redis.yaml": (), "network-policies.yaml": ()}),
    *component(
        "first-secrets",
        ".Values.firstSecrets.enabled",
        {
            "job.yaml": job("first-secrets", "What exists it\n"),
            "service-account.yaml": (),
            "roles.yaml": (),
            "network-policies.yaml": (),
        },
    ),
    Template(
        f"{COMPONENTS}/pool-sim/simulator.yaml",
        "pools/simulators.yaml",
        SIMULATOR,
        each=".Values.simulators",
        document=0,
    ),
    Template(
        f"{COMPONENTS}/pool-sim/network-policies.yaml",
        "pools/simulators-network-policies.yaml",
        when=".Values.simulators",
    ),
    Template(f"{COMPONENTS}/pool-vllm-gpu/vllm.yaml", "pools/vllm.yaml", VLLM, each=".Values.pools"),
    Template(
        f"{COMPONENTS}/pool-vllm-gpu/disruption-budget.yaml",
        "pools/vllm-disruption-budgets.yaml",
        pool(1, 1, 1),
        each=".Values.pools",
    ),
    Template(
        f"{COMPONENTS}/pool-vllm-gpu/network-policies.yaml",
        "pools/vllm-network-policies.yaml",
        pool(1, 1, 1),
        each=".Values.pools",
    ),
    Template(
        f"{COMPONENTS}/keda/scaledobject.yaml", "pools/scaled-objects.yaml", SCALED, ".scale", each=".Values.pools"
    ),
    *component(
        "model-cache",
        ".Values.modelCache.enabled",
        {"claim.yaml": CLAIM, "loader.yaml": LOADER, "network-policies.yaml": ()},
    ),
    *component(
        "prometheus",
        ".Values.prometheus.enabled",
        {
            "prometheus.yaml": (restarted_by("prometheus/config.yaml", "prometheus"),),
            "roles.yaml": (),
            "network-policies.yaml": (),
        },
    ),
    *component(
        "grafana",
        ".Values.grafana.enabled",
        {"grafana.yaml": (restarted_by("grafana/config.yaml", "grafana"),), "network-policies.yaml": ()},
    ),
    *component(
        "otel",
        ".Values.otel.enabled",
        {"collector.yaml": (restarted_by("otel/config.yaml", "otel-collector"),), "network-policies.yaml": ()},
    ),
    *component(
        "servicemonitor",
        ".Values.prometheusOperator.monitors",
        {"monitors.yaml": MONITORS, "network-policies.yaml": (MONITORING,)},
    ),
    *component("open-webui", ".Values.openWebui.enabled", {"open-webui.yaml": WEBUI, "network-policies.yaml": ()}),
    *component(
        "httproute",
        ".Values.route.enabled",
        {"route.yaml": (*PARENTS, Place("[llm.example.com]", "{{ toJson .Values.route.hosts }}"))},
    ),
    Template(
        "kustomize/overlays/production/open-webui-route.yaml",
        "open-webui/route.yaml",
        (*PARENTS, Place("[chat.example.com]", "[{{ quote .Values.openWebui.host }}]")),
        "and .Values.route.enabled .Values.openWebui.enabled .Values.openWebui.host",
    ),
    *component("ingress", ".Values.ingress.enabled", {"ingress.yaml": INGRESS}),
)
