"""Tests that the chart renders valid, safe resources that match the rest of the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.chart_files import stale
from deploy.chart_readme import rows as value_rows
from tasks.contracts import QUEUES
from tasks.observe.periodic import BEAT
from tasks.rollout import EVERYBODY
from tasks.settings import FROM_FILE, Settings
from tests.charts.rendering import (
    CHART,
    CUSTOM,
    ROOT,
    VALUES,
    Refused,
    Resource,
    lint,
    node_tools,
    notes,
    of_component,
    of_kind,
    problems_of_kubernetes,
    problems_of_operators,
    render,
    render_in_cluster,
    render_with_helm_3,
)
from tests.support import lacking

pytestmark = pytest.mark.deploy

GOOD = sorted(VALUES.glob("*-values.yaml"))
REFUSED = sorted((VALUES / "refused").glob("*.yaml"))
KUBERNETES = [f"1.{minor}" for minor in range(27, 38)]
COMPONENTS = ("worker", "scheduler", "server")


def loaded(path: Path) -> Mapping[str, Any]:
    values: Mapping[str, Any] = yaml.safe_load(path.read_text()) or {}
    return values


@cache
def all_that_is_rendered() -> list[Resource]:
    return [resource for values in ({}, *map(loaded, GOOD)) for resource in render(values)]


def everything() -> list[Resource]:
    return render(loaded(VALUES / "everything-values.yaml"))


def pod_of(deployment: Resource) -> Mapping[str, Any]:
    spec: Mapping[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def container_of(deployment: Resource) -> Mapping[str, Any]:
    return dict(pod_of(deployment)["containers"][0])


def environment_of(deployment: Resource) -> Mapping[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container_of(deployment)["env"]}


# -- valid on every version ------------------------------------------------------------------------------------------


def test_helm_lint_reports_no_problems() -> None:
    assert lint() == []


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_schemas_accept_every_resource(version: str) -> None:
    assert problems_of_kubernetes(all_that_is_rendered(), version) == []


def test_operator_schemas_accept_custom_resources() -> None:
    custom = [r for path in GOOD for r in render(loaded(path)) if r["apiVersion"] in CUSTOM]

    assert {"PodMonitor", "ScaledObject", "TriggerAuthentication"} <= {resource["kind"] for resource in custom}
    assert problems_of_operators(custom) == []


def test_operator_schemas_refuse_invalid_resources() -> None:
    # proves that the check above can fail
    monitor = of_kind(everything(), "PodMonitor")[0]
    monitor["spec"]["podMetricsEndpoints"][0]["interval"] = "15 sec"
    (scaled,) = of_kind(render(loaded(VALUES / "keda-values.yaml")), "ScaledObject")
    scaled["spec"]["maxReplicaCount"] = "ten"

    assert len(problems_of_operators([monitor, scaled])) == 2


def test_kubernetes_schemas_refuse_a_misspelt_field() -> None:
    # proves that the check above can fail
    worker = of_component(render({}), "Deployment", "worker")
    worker["spec"]["template"]["spec"]["containers"][0]["livnessProbe"] = {}

    assert len(problems_of_kubernetes([worker], "1.30")) == 1


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_helm_3_and_helm_4_render_the_same_resources(path: Path) -> None:
    def by_name(resources: list[Resource]) -> dict[tuple[str, str], Resource]:
        return {(resource["kind"], resource["metadata"]["name"]): resource for resource in resources}

    assert by_name(render_with_helm_3(path)) == by_name(render(loaded(path)))


# -- refused values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_error_for_invalid_values_names_the_value(path: Path) -> None:
    names = path.read_text().splitlines()[0].removeprefix("# ")

    with pytest.raises(Refused) as helm_4:
        render(loaded(path))
    with pytest.raises(Refused) as helm_3:
        render_with_helm_3(path)

    assert names.split(".")[-1] in str(helm_4.value)
    assert names.split(".")[-1] in str(helm_3.value)


def test_examples_cover_at_least_ten_kinds_of_refused_values() -> None:
    assert len(REFUSED) >= 10


def test_schema_covers_every_chart_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def unknown(values: Mapping[str, Any], node: Mapping[str, Any], path: str = "") -> list[str]:
        properties = node.get("properties", {})
        is_strict = node.get("additionalProperties") is False or path == ".global" or path.count(".") > 1
        found = [] if is_strict else [f"{path} is not strict"]
        for name, value in values.items():
            if isinstance(value, Mapping) and name in properties and "properties" in properties[name]:
                found += unknown(value, properties[name], f"{path}.{name}")
            elif name not in properties:
                found.append(f"{path}.{name}")
        return found

    assert unknown(yaml.safe_load((CHART / "values.yaml").read_text()), schema) == []


# -- safe by default -------------------------------------------------------------------------------------------------


def test_runbook_selectors_match_all_pods() -> None:
    for resource in render({}):
        assert resource["metadata"]["namespace"] == "media"
        assert resource["metadata"]["labels"]["app"] == "sploot-cluster"
    for component in COMPONENTS:
        template = of_component(render({}), "Deployment", component)["spec"]["template"]
        assert template["metadata"]["labels"]["app"] == "sploot-cluster"


@pytest.mark.parametrize("component", [*COMPONENTS, "alertmanager"])
def test_pods_run_with_least_privilege(component: str) -> None:
    deployment = of_component(everything(), "Deployment", component)

    pod, container = pod_of(deployment), container_of(deployment)
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]


def test_chart_and_environment_contain_no_secret() -> None:
    resources = everything()

    assert of_kind(resources, "Secret") == []
    for component in COMPONENTS:
        assert {"REDIS_URL", "SPLOOT_API_TOKENS", "SENTRY_DSN"}.isdisjoint(
            environment_of(of_component(resources, "Deployment", component))
        )


def test_files_named_by_settings_are_mounted() -> None:
    for component in COMPONENTS:
        deployment = of_component(everything(), "Deployment", component)
        folders = {mount["mountPath"]: mount["name"] for mount in container_of(deployment)["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod_of(deployment)["volumes"]}
        for variable, value in environment_of(deployment).items():
            if variable.endswith(FROM_FILE):
                folder, _, name = value.rpartition("/")
                items = volumes[folders[folder]]["secret"]["items"]
                assert [item["path"] for item in items] == [name]


def test_chart_variables_are_known_settings() -> None:
    known = {row["variable"] for row in Settings().table()}
    for component in COMPONENTS:
        for variable in environment_of(of_component(everything(), "Deployment", component)):
            assert variable.removesuffix(FROM_FILE) in known | {"HTTPS_PROXY"}, variable


def test_chart_settings_reach_the_worker() -> None:
    environ = dict(environment_of(of_component(everything(), "Deployment", "worker")))
    for secret in ("REDIS_URL", "SENTRY_DSN"):
        environ.pop(secret + FROM_FILE)

    settings = Settings.from_env(environ)

    assert settings.metrics_host == "0.0.0.0"
    assert settings.ingest_rollout_percent == 25
    assert (settings.dead_letter_days, settings.max_dead_letters) == (30, 2_000_000)
    assert (settings.max_queue_length, settings.read_ahead_ms, settings.keeper_process) == (50_000, 0, False)
    assert settings.clustering.models == {"clip@1": 512, "dino@2": 768}
    assert (settings.clustering.growth_ratio, settings.clustering.n_neighbours) == (0.5, 32)


def test_chart_defaults_equal_settings_defaults() -> None:
    environ = dict(environment_of(of_component(render({}), "Deployment", "worker")))
    environ.pop("REDIS_URL" + FROM_FILE)
    environ.pop("WORKER_METRICS_HOST")

    assert Settings.from_env(environ) == Settings()


def test_worker_grace_period_exceeds_drain_timeout() -> None:
    for path in GOOD:
        worker = of_component(render(loaded(path)), "Deployment", "worker")
        (option,) = [word for word in container_of(worker)["args"] if word.startswith("--shutdown-timeout-ms=")]
        assert pod_of(worker)["terminationGracePeriodSeconds"] * 1000 > int(option.partition("=")[2])


def test_probes_use_served_paths_and_ports() -> None:
    resources = render({})
    for component, port in (("worker", "metrics"), ("server", "http")):
        container = container_of(of_component(resources, "Deployment", component))
        assert [declared["name"] for declared in container["ports"]] == [port]
        # the liveness probe never depends on Redis
        for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
            assert container[probe]["httpGet"] == {"path": path, "port": port}


def test_scheduler_probe_fails_when_ticks_stop(tmp_path: Path) -> None:
    container = container_of(of_component(render({}), "Deployment", "scheduler"))
    beat = tmp_path / "beat"

    def answers(probe: str) -> bool:
        words = container[probe]["exec"]["command"]
        # the image sets no TMPDIR
        uses_beat = any(f"/tmp/{BEAT.name}" in word for word in words)
        assert uses_beat, "the probe must read the file that the scheduler touches"
        command = [word.replace(f"/tmp/{BEAT.name}", str(beat)) for word in words]
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0

    assert (answers("startupProbe"), answers("livenessProbe")) == (False, False)
    beat.touch()
    assert (answers("startupProbe"), answers("livenessProbe")) == (True, True)
    os.utime(beat, (time.time() - 240, time.time() - 240))
    assert (answers("startupProbe"), answers("livenessProbe")) == (True, False)


def test_chart_runs_one_scheduler_that_does_not_block_node_drains() -> None:
    resources = everything()

    scheduler = of_component(resources, "Deployment", "scheduler")
    assert (scheduler["spec"]["replicas"], scheduler["spec"]["strategy"]) == (1, {"type": "Recreate"})
    budgets = [budget["metadata"]["name"] for budget in of_kind(resources, "PodDisruptionBudget")]
    workers = ["sploot-sploot-cluster-worker" + pool for pool in ("", "-gpu", "-recluster")]
    assert budgets == ["sploot-sploot-cluster-server", *workers]


def test_network_policy_allows_scrapers_callers_redis_and_dns() -> None:
    found = of_kind(render({}), "NetworkPolicy")
    policies = {policy["metadata"]["name"].rpartition("-")[2]: policy["spec"] for policy in found}

    assert set(policies) == {*COMPONENTS, "test"}
    assert all(policy["policyTypes"] == ["Ingress", "Egress"] for policy in policies.values())
    assert policies["scheduler"]["ingress"] == policies["test"]["ingress"] == []
    (worker,) = policies["worker"]["ingress"]
    assert worker["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    assert worker["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    for component, policy in policies.items():
        ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
        assert ports - ({"http"} if component == "test" else set()) == {53, 5353, 6379}


def test_every_pod_has_a_network_policy() -> None:
    resources = everything()
    pods = [r["spec"]["template"] for r in of_kind(resources, "Deployment")] + of_kind(resources, "Pod")
    selectors = [r["spec"]["podSelector"]["matchLabels"].items() for r in of_kind(resources, "NetworkPolicy")]

    for pod in pods:
        assert any(selector <= pod["metadata"]["labels"].items() for selector in selectors)


# -- needs of installations ------------------------------------------------------------------------------------------


def test_objects_are_in_the_namespace_of_the_release() -> None:
    assert {resource["metadata"]["namespace"] for resource in render({}, namespace="pets")} == {"pets"}
    assert {resource["metadata"]["namespace"] for resource in render({"namespace": "own"}, namespace="pets")} == {"own"}


def test_openshift_chooses_the_user_id(tmp_path: Path) -> None:
    everything = VALUES / "everything-values.yaml"
    on_openshift = render_with_helm_3(everything, "--api-versions", "security.openshift.io/v1")

    for deployment in of_kind(on_openshift, "Deployment"):
        context = pod_of(deployment)["securityContext"]
        assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    own = tmp_path / "values.yaml"
    own.write_text("podSecurityContext: {runAsUser: null, fsGroup: 5}")
    worker = of_component(render_with_helm_3(own), "Deployment", "worker")
    assert "runAsUser" not in pod_of(worker)["securityContext"]
    assert pod_of(worker)["securityContext"]["fsGroup"] == 5


def test_extra_variables_replace_those_of_the_chart() -> None:
    worker = of_component(
        render({"worker": {"extraEnv": [{"name": "SPLOOT_LOG_LEVEL", "value": "DEBUG"}]}}), "Deployment", "worker"
    )

    names = [variable["name"] for variable in container_of(worker)["env"]]
    assert len(names) == len(set(names))
    assert environment_of(worker)["SPLOOT_LOG_LEVEL"] == "DEBUG"


def test_umbrella_chart_shares_registry_and_pull_secrets() -> None:
    shared = {"imageRegistry": "registry.example:5000", "imagePullSecrets": [{"name": "shared"}], "other": 1}
    resources = render({"enabled": True, "global": shared, "alertmanager": {"enabled": True}})

    for deployment in of_kind(resources, "Deployment"):
        assert pod_of(deployment)["imagePullSecrets"] == [{"name": "shared"}]
    worker = container_of(of_component(resources, "Deployment", "worker"))
    assert worker["image"].startswith("registry.example:5000/sploot-cluster:")


def test_pools_inherit_the_values_of_worker_that_they_do_not_set() -> None:
    resources = everything()
    pools = {
        deployment["spec"]["selector"]["matchLabels"]["sploot-cluster/pool"]: deployment
        for deployment in of_kind(resources, "Deployment")
        if "-worker" in deployment["metadata"]["name"]
    }

    queues = {
        name: [word.partition("=")[2] for word in container_of(pool)["args"] if word.startswith("--queue=")]
        for name, pool in pools.items()
    }
    assert queues == {
        "default": ["embedding.ingested", "cluster.feedback"],
        "recluster": ["cluster.recluster", "cluster.maintenance"],
        "gpu": ["cluster.recluster"],
    }
    assert (pools["default"]["spec"]["replicas"], pools["recluster"]["spec"]["replicas"]) == (4, 1)
    gpu = pools["gpu"]
    assert (pod_of(gpu)["runtimeClassName"], container_of(gpu)["resources"]["limits"]["nvidia.com/gpu"]) == (
        "nvidia",
        1,
    )
    assert container_of(gpu)["resources"]["requests"] == container_of(pools["default"])["resources"]["requests"]
    (scaler,) = of_kind(resources, "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == gpu["metadata"]["name"]


@pytest.mark.parametrize("document", ["deployment.md", "gpu.md"])
def test_pools_in_the_documents_render(document: str) -> None:
    text = (ROOT / "docs" / "how-to" / document).read_text()
    examples = [
        values for block in re.findall(r"```yaml\n(.*?)```", text, re.S) if "pools" in (values := yaml.safe_load(block))
    ]

    assert len(examples) == 1
    for values in examples:
        resources = render({**values, "autoscaling": {"keda": {"address": "redis:6379"}}})
        queues = [
            trigger["metadata"].get("stream")
            for scaled in of_kind(resources, "ScaledObject")
            for trigger in scaled["spec"]["triggers"]
        ]
        assert set(queues) <= {"streams:cluster.recluster", None}
        assert len(of_kind(resources, "Deployment")) == 4


def test_values_in_the_comparison_with_other_charts_exist() -> None:
    text = (ROOT / "docs" / "how-to" / "chart-values.md").read_text()
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    named = {name for _, ours in rows for name in re.findall(r"`(\w+(?:[.]\w+)*)`", ours.partition(":")[0])}
    known = {path for path, _, _ in value_rows(CHART / "values.yaml")}
    known |= {path.rpartition(".")[0] for path in known}

    assert len(named) > 80
    assert named - known <= {"hpa", "keda"}


def test_selectors_of_pools_do_not_overlap() -> None:
    resources = everything()
    for kind in ("Deployment", "PodDisruptionBudget"):
        selectors = [resource["spec"]["selector"]["matchLabels"] for resource in of_kind(resources, kind)]
        for deployment in of_kind(resources, "Deployment"):
            labels = deployment["spec"]["template"]["metadata"]["labels"]
            assert sum(selector.items() <= labels.items() for selector in selectors) <= 1


def test_every_queue_has_a_pool_by_default() -> None:
    worker = of_component(render({}), "Deployment", "worker")

    assert [word for word in container_of(worker)["args"] if word.startswith("--queue")] == []
    one_each = {queue.partition(".")[2]: {"queues": [queue]} for queue in QUEUES[1:]}
    pools = render({"worker": {"queues": [QUEUES[0]]}, "pools": one_each})
    assert sum("-worker" in deployment["metadata"]["name"] for deployment in of_kind(pools, "Deployment")) == len(
        QUEUES
    )


def test_ingress_routes_requests_to_the_server() -> None:
    resources = everything()
    (ingress,) = of_kind(resources, "Ingress")
    service = of_component(resources, "Service", "server")

    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert rule["host"] == "clusters.example"
    assert path["backend"]["service"]["name"] == service["metadata"]["name"]
    assert path["backend"]["service"]["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    assert of_kind(render({}), "Ingress") == []


def test_silences_survive_a_replacement_of_alertmanager() -> None:
    resources = everything()
    deployment = of_component(resources, "Deployment", "alertmanager")

    (claim,) = of_kind(resources, "PersistentVolumeClaim")
    (data,) = [volume for volume in pod_of(deployment)["volumes"] if volume["name"] == "data"]
    assert data["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    own = {"alertmanager": {"enabled": True, "persistence": {"enabled": True, "existingClaim": "mine"}}}
    assert of_kind(render(own), "PersistentVolumeClaim") == []


def test_helm_test_runs_the_doctor_and_calls_the_server() -> None:
    (pod,) = of_kind(render({}), "Pod")

    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    doctor, server = pod["spec"]["containers"]
    assert doctor["args"] == ["doctor"]
    service = of_component(render({}), "Service", "server")
    assert f"http://{service['metadata']['name']}:8080/readyz" in server["command"][-1]
    assert pod["spec"]["restartPolicy"] == "Never"


# -- scaling ---------------------------------------------------------------------------------------------------------


def test_replicas_are_unset_when_an_autoscaler_manages_them() -> None:
    assert of_component(render({}), "Deployment", "worker")["spec"]["replicas"] == 2
    for path in VALUES.glob("keda-*.yaml"):
        assert "replicas" not in of_component(render(loaded(path)), "Deployment", "worker")["spec"]
    assert "replicas" not in of_component(render(loaded(VALUES / "hpa-values.yaml")), "Deployment", "worker")["spec"]


def test_running_pool_keeps_its_pods_when_an_autoscaler_takes_over() -> None:
    values = loaded(VALUES / "hpa-values.yaml")
    live = of_component(render({}), "Deployment", "worker")
    live["spec"]["replicas"] = 7

    rendered = render_in_cluster(values, live)

    assert of_component(rendered, "Deployment", "worker")["spec"]["replicas"] == 7


def test_keda_scales_on_undelivered_and_delayed_jobs() -> None:
    (scaled,) = of_kind(render(loaded(VALUES / "keda-values.yaml")), "ScaledObject")

    triggers = [trigger["metadata"] for trigger in scaled["spec"]["triggers"]]
    streams = {trigger["stream"] for trigger in triggers if "stream" in trigger}
    assert streams == {f"streams:{queue}" for queue in QUEUES if queue != "cluster.maintenance"}
    assert {trigger["listName"] for trigger in triggers if "listName" in trigger} == {
        f"{{{stream}}}:delayed" for stream in streams
    }
    # no trigger uses these, because pending entries and lag do not include undelivered jobs while no worker runs
    assert all({"pendingEntriesCount", "lagCount", "consumerGroup"}.isdisjoint(trigger) for trigger in triggers)
    assert scaled["spec"]["minReplicaCount"] == 0
    assert all(isinstance(value, str) for trigger in triggers for value in trigger.values())


def test_keda_adds_up_the_jobs_of_all_shards() -> None:
    (scaled,) = of_kind(render(loaded(VALUES / "keda-shards-values.yaml")), "ScaledObject")

    triggers = scaled["spec"]["triggers"]
    streams = {trigger["metadata"]["stream"] for trigger in triggers if "stream" in trigger["metadata"]}
    assert {stream for stream in streams if "embedding" in stream} == {
        "streams:embedding.ingested",
        *(f"streams:embedding.ingested.s{number}" for number in (1, 2, 3)),
    }
    assert {"{streams:embedding.ingested.s3}:delayed"} <= {trigger["metadata"].get("listName") for trigger in triggers}
    modifiers = scaled["spec"]["advanced"]["scalingModifiers"]
    assert modifiers["formula"].split(" + ") == [trigger["name"] for trigger in triggers]
    assert modifiers["target"] == "200"


def test_hpa_scales_on_the_sum_of_undelivered_jobs() -> None:
    (hpa,) = of_kind(render(loaded(VALUES / "hpa-values.yaml")), "HorizontalPodAutoscaler")

    (metric,) = hpa["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == "sploot_cluster_undelivered_jobs"
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "500"}
    assert hpa["spec"]["minReplicas"] == 2


# -- consistent with the project -------------------------------------------------------------------------------------


def test_chart_copies_match_their_sources() -> None:
    assert stale() == [], "make chart-files"
    links = {path.resolve() for path in (CHART / "files").glob("*/*")}
    assert links == {
        *(ROOT / "ops/alerts").glob("*.yaml"),
        *(ROOT / "ops/dashboards").glob("*.json"),
        ROOT / "ops/config/alertmanager.yaml",
    }


def test_chart_rules_equal_ops_rules_and_pass_promtool(tmp_path: Path) -> None:
    sources = sorted((ROOT / "ops" / "alerts").glob("*.yaml"))
    assert sources

    (rule,) = of_kind(everything(), "PrometheusRule")

    groups = [group for source in sources for group in yaml.safe_load(source.read_text())["groups"]]
    # the rules of a Helm release only consider its own namespace
    for alert in (each for group in groups for each in group["rules"] if "alert" in each):
        if not re.search("watchdog|notifications|redis-(exporter|memory|evictions)", alert["labels"]["family"]):
            alert["expr"] = re.sub(r"media_cluster:[a-z_]+(:\d+[smhd])?", r'\g<0>{namespace="media"}', alert["expr"])
    assert rule["spec"]["groups"] == groups
    if shutil.which("promtool") is None:
        lacking("promtool", "apt-get install prometheus")
    rendered = tmp_path / "rules.yaml"
    rendered.write_text(yaml.safe_dump({"groups": rule["spec"]["groups"]}))
    checked = subprocess.run(["promtool", "check", "rules", rendered], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def rules_of(changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the alerts of a release with these ``prometheusRule`` values, by name."""
    (rule,) = of_kind(render({"prometheusRule": {"enabled": True, **changes}}), "PrometheusRule")
    return {each["alert"]: each for group in rule["spec"]["groups"] for each in group["rules"] if "alert" in each}


def test_single_alerts_can_be_changed_and_disabled() -> None:
    rules = {
        "MediaClusterPendingHigh": {"threshold": 200, "for": "5m", "severity": "critical", "page": True},
        "MediaClusterStalled": {"page": False, "keepFiringFor": "10m"},
        "MediaClusterNoWorkers": {"enabled": False},
    }

    changed = rules_of({"rules": rules, "ownNamespaceOnly": False})

    pending, stalled = changed["MediaClusterPendingHigh"], changed["MediaClusterStalled"]
    assert (pending["expr"], pending["for"]) == ("media_cluster:pending >= 200", "5m")
    assert (pending["labels"]["severity"], pending["labels"]["page"]) == ("critical", "true")
    assert ("page" in stalled["labels"], stalled["keep_firing_for"]) == (False, "10m")
    assert "MediaClusterNoWorkers" not in changed
    assert len(changed) == len(rules_of({})) - 1


def test_links_and_labels_of_alerts_match_the_environment() -> None:
    changed = rules_of(
        {
            "dashboardUrl": "https://grafana.example/d/x",
            "runbookUrl": "https://wiki.example/runbook",
            "consoleUrl": "https://clusters.example/",
            "additionalRuleLabels": {"environment": "production"},
        }
    )

    for alert in changed.values():
        assert alert["annotations"]["dashboard_url"].startswith("https://grafana.example/d/x?viewPanel=")
        assert alert["annotations"]["runbook_url"] == f"https://wiki.example/runbook#{alert['alert'].lower()}"
        assert alert["annotations"]["console_url"] == f"https://clusters.example/#/incidents/{alert['alert']}"
        assert alert["labels"]["environment"] == "production"


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"MediaClusterNoSuchAlert": {"enabled": False}}, "there is no alert of this name"),
        ({"MediaClusterErrorBudgetBurnsFast": {"threshold": 0.5}}, "has no single threshold"),
        ({"MediaClusterPendingHigh": {"treshold": 200}}, "treshold"),
    ],
)
def test_change_of_an_alert_without_effect_is_refused(rules: dict[str, Any], problem: str) -> None:
    with pytest.raises(Refused, match=problem):
        rules_of({"rules": rules})


def test_podmonitor_job_labels_match_the_rules() -> None:
    (monitor,) = of_kind(everything(), "PodMonitor")

    assert monitor["spec"]["jobLabel"] == "app"
    jobs = {
        endpoint["port"]: [rule["replacement"] for rule in endpoint["relabelings"] if rule["targetLabel"] == "job"]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
    }
    # as in ops/config/prometheus.yaml: workers get their job name from jobLabel, servers have a separate one
    assert jobs == {"metrics": [], "http": ["sploot-cluster-server"], "alertmanager": ["alertmanager"]}
    config = yaml.safe_load((ROOT / "ops" / "config" / "prometheus.yaml").read_text())
    scraped = {job["job_name"] for job in config["scrape_configs"]}
    assert {"sploot-cluster", "sploot-cluster-server"} <= scraped


def test_chart_dashboard_equals_ops_dashboard() -> None:
    (dashboard,) = [r for r in of_kind(everything(), "ConfigMap") if r["metadata"]["name"].endswith("-dashboard")]

    (source,) = (ROOT / "ops" / "dashboards").glob("*.json")
    assert json.loads(dashboard["data"][source.name]) == json.loads(source.read_text())
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_alertmanager_image_is_pinned_by_its_digest() -> None:
    container = container_of(of_component(everything(), "Deployment", "alertmanager"))

    assert re.fullmatch(r"quay[.]io/prometheus/alertmanager:v[0-9.]+@sha256:[0-9a-f]{64}", container["image"])


def test_alertmanager_gets_routes_and_the_files_they_name() -> None:
    resources = everything()
    config = (ROOT / "ops" / "config" / "alertmanager.yaml").read_text()

    deployment = of_component(resources, "Deployment", "alertmanager")
    (mapped,) = [r for r in of_kind(resources, "ConfigMap") if r["metadata"]["name"].endswith("-alertmanager")]

    assert yaml.safe_load(mapped["data"]["alertmanager.yaml"]) == yaml.safe_load(config)
    (secrets,) = [volume for volume in pod_of(deployment)["volumes"] if volume["name"] == "secrets"]
    for item in secrets["secret"]["items"]:
        assert f"/etc/alertmanager/secrets/{item['path']}" in config


def test_mounted_secrets_are_readable_by_any_user_of_their_pod() -> None:
    volumes = [volume for deployment in of_kind(everything(), "Deployment") for volume in pod_of(deployment)["volumes"]]
    modes = {volume["name"]: volume["secret"]["defaultMode"] for volume in volumes if "secret" in volume}

    assert {"redis", "api", "secrets"} <= set(modes)
    # readable by all, because the files belong to root if podSecurityContext has no fsGroup
    assert set(modes.values()) == {0o444}


def test_rollout_percent_reaches_server_worker_and_producers() -> None:
    for percent in (0, 25, EVERYBODY):
        resources = render({"ingest": {"rolloutPercent": percent}})
        for component in ("server", "worker"):
            environ = environment_of(of_component(resources, "Deployment", component))
            assert environ["SPLOOT_INGEST_ROLLOUT_PERCENT"] == str(percent)
        (shared,) = [r for r in of_kind(resources, "ConfigMap") if r["metadata"]["name"].endswith("-rollout")]
        assert shared["data"] == {"SPLOOT_INGEST_ROLLOUT_PERCENT": str(percent)}


def test_installation_notes_list_what_is_missing() -> None:
    text = notes({"ingest": {"rolloutPercent": 10}})

    assert "items of 10 % of the pets" in text
    assert "set image.digest" in text
    assert "No alerts are installed" in text
    assert "sploot-cluster-redis, key url" in text
    assert "kubectl get pod -l app=sploot-cluster -n media" in text
    assert "No alerts are installed" not in notes({"prometheusRule": {"enabled": True}})
    assert "set image.digest" not in notes({"image": {"digest": f"sha256:{'0' * 64}"}})


def test_installation_notes_warn_about_alerts_when_scaled_to_zero() -> None:
    keda = loaded(VALUES / "keda-values.yaml")

    assert "MediaClusterNoWorkers pages" in notes({**keda, "autoscaling": {**keda["autoscaling"], "minReplicas": 0}})
    assert "MediaClusterNoWorkers" not in notes({**keda, "autoscaling": {**keda["autoscaling"], "minReplicas": 1}})


def test_npm_tools_are_installed() -> None:
    assert (node_tools() / "node_modules" / "helm-binary" / "package.json").exists()
