"""The chart: what it renders is valid everywhere, safe by default, and true to the rest of the project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.chart_files import COPIES, stale
from tasks.contracts import QUEUES
from tasks.periodic import BEAT
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
    (container,) = pod_of(deployment)["containers"]
    return dict(container)


def environment_of(deployment: Resource) -> Mapping[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container_of(deployment)["env"]}


# -- valid everywhere ------------------------------------------------------------------------------------------------


def test_the_linter_finds_nothing() -> None:
    assert lint() == []


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_kubernetes_takes_all_of_it(version: str) -> None:
    assert problems_of_kubernetes(all_that_is_rendered(), version) == []


def test_the_operators_take_their_resources() -> None:
    custom = [r for path in GOOD for r in render(loaded(path)) if r["apiVersion"] in CUSTOM]

    assert {"PodMonitor", "ScaledObject", "TriggerAuthentication"} <= {resource["kind"] for resource in custom}
    assert problems_of_operators(custom) == []


def test_the_operators_refuse_what_is_wrong_with_their_resources() -> None:
    # the check above can fail
    monitor = of_kind(everything(), "PodMonitor")[0]
    monitor["spec"]["podMetricsEndpoints"][0]["interval"] = "15 sec"
    (scaled,) = of_kind(render(loaded(VALUES / "keda-values.yaml")), "ScaledObject")
    scaled["spec"]["maxReplicaCount"] = "ten"

    assert len(problems_of_operators([monitor, scaled])) == 2


def test_a_misspelt_field_is_refused_by_the_kubernetes_schemas() -> None:
    # the check above can fail
    worker = of_component(render({}), "Deployment", "worker")
    worker["spec"]["template"]["spec"]["containers"][0]["livnessProbe"] = {}

    assert len(problems_of_kubernetes([worker], "1.30")) == 1


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_helm_3_renders_what_helm_4_renders(path: Path) -> None:
    def by_name(resources: list[Resource]) -> dict[tuple[str, str], Resource]:
        return {(resource["kind"], resource["metadata"]["name"]): resource for resource in resources}

    assert by_name(render_with_helm_3(path)) == by_name(render(loaded(path)))


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_values_that_cannot_work_are_refused_by_name(path: Path) -> None:
    names = path.read_text().splitlines()[0].removeprefix("# ")

    with pytest.raises(Refused) as helm_4:
        render(loaded(path))
    with pytest.raises(Refused) as helm_3:
        render_with_helm_3(path)

    assert names.split(".")[-1] in str(helm_4.value)
    assert names.split(".")[-1] in str(helm_3.value)


def test_at_least_ten_kinds_of_values_are_refused() -> None:
    assert len(REFUSED) >= 10


def test_every_value_of_the_chart_is_in_the_schema_and_every_default_passes() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def unknown(values: Mapping[str, Any], node: Mapping[str, Any], path: str = "") -> list[str]:
        properties = node.get("properties", {})
        found = [] if node.get("additionalProperties") is False or path.count(".") > 1 else [f"{path} is not strict"]
        for name, value in values.items():
            if isinstance(value, Mapping) and name in properties and "properties" in properties[name]:
                found += unknown(value, properties[name], f"{path}.{name}")
            elif name not in properties:
                found.append(f"{path}.{name}")
        return found

    assert unknown(yaml.safe_load((CHART / "values.yaml").read_text()), schema) == []


# -- safe by default -------------------------------------------------------------------------------------------------


def test_the_runbooks_commands_find_the_pods() -> None:
    for resource in render({}):
        assert resource["metadata"]["namespace"] == "media"
        assert resource["metadata"]["labels"]["app"] == "sploot-cluster"
    for component in COMPONENTS:
        template = of_component(render({}), "Deployment", component)["spec"]["template"]
        assert template["metadata"]["labels"]["app"] == "sploot-cluster"


@pytest.mark.parametrize("component", [*COMPONENTS, "alertmanager"])
def test_no_pod_may_more_than_it_needs(component: str) -> None:
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


def test_no_secret_stands_in_an_environment_or_in_the_chart() -> None:
    resources = everything()

    assert of_kind(resources, "Secret") == []
    for component in COMPONENTS:
        assert {"REDIS_URL", "SPLOOT_API_TOKENS", "SENTRY_DSN"}.isdisjoint(
            environment_of(of_component(resources, "Deployment", component))
        )


def test_every_file_that_a_setting_names_is_mounted() -> None:
    for component in COMPONENTS:
        deployment = of_component(everything(), "Deployment", component)
        folders = {mount["mountPath"]: mount["name"] for mount in container_of(deployment)["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod_of(deployment)["volumes"]}
        for variable, value in environment_of(deployment).items():
            if variable.endswith(FROM_FILE):
                folder, _, name = value.rpartition("/")
                items = volumes[folders[folder]]["secret"]["items"]
                assert [item["path"] for item in items] == [name]


def test_every_variable_that_the_chart_sets_is_a_setting() -> None:
    known = {row["variable"] for row in Settings().table()}
    for component in COMPONENTS:
        for variable in environment_of(of_component(everything(), "Deployment", component)):
            assert variable.removesuffix(FROM_FILE) in known | {"HTTPS_PROXY"}, variable


def test_the_settings_that_the_chart_gives_are_taken() -> None:
    environ = dict(environment_of(of_component(everything(), "Deployment", "worker")))
    for secret in ("REDIS_URL", "SENTRY_DSN"):
        environ.pop(secret + FROM_FILE)

    settings = Settings.from_env(environ)

    assert settings.metrics_host == "0.0.0.0"
    assert settings.ingest_rollout_percent == 25
    assert settings.clustering.models == {"clip@1": 512, "dino@2": 768}
    assert (settings.clustering.growth_ratio, settings.clustering.n_neighbours) == (0.5, 32)


def test_the_defaults_of_the_chart_are_the_defaults_of_the_settings() -> None:
    environ = dict(environment_of(of_component(render({}), "Deployment", "worker")))
    environ.pop("REDIS_URL" + FROM_FILE)
    environ.pop("WORKER_METRICS_HOST")

    assert Settings.from_env(environ) == Settings()


def test_a_worker_is_killed_no_earlier_than_its_jobs_may_end() -> None:
    for path in GOOD:
        worker = of_component(render(loaded(path)), "Deployment", "worker")
        (option,) = [word for word in container_of(worker)["args"] if word.startswith("--shutdown-timeout-ms=")]
        assert pod_of(worker)["terminationGracePeriodSeconds"] * 1000 > int(option.partition("=")[2])


def test_probes_ask_what_the_processes_answer() -> None:
    resources = render({})
    for component, port in (("worker", "metrics"), ("server", "http")):
        container = container_of(of_component(resources, "Deployment", component))
        assert [declared["name"] for declared in container["ports"]] == [port]
        # alive is never "Redis answers"
        for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
            assert container[probe]["httpGet"] == {"path": path, "port": port}


def test_a_scheduler_lives_while_it_ticks(tmp_path: Path) -> None:
    container = container_of(of_component(render({}), "Deployment", "scheduler"))
    beat = tmp_path / "beat"

    def answers(probe: str) -> bool:
        words = container[probe]["exec"]["command"]
        # the image sets no TMPDIR
        assert any(f"/tmp/{BEAT.name}" in word for word in words), "another file than the scheduler touches"
        command = [word.replace(f"/tmp/{BEAT.name}", str(beat)) for word in words]
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0

    assert (answers("startupProbe"), answers("livenessProbe")) == (False, False)
    beat.touch()
    assert (answers("startupProbe"), answers("livenessProbe")) == (True, True)
    os.utime(beat, (time.time() - 240, time.time() - 240))
    assert (answers("startupProbe"), answers("livenessProbe")) == (True, False)


def test_there_is_one_scheduler_and_nothing_keeps_its_node() -> None:
    resources = everything()

    scheduler = of_component(resources, "Deployment", "scheduler")
    assert (scheduler["spec"]["replicas"], scheduler["spec"]["strategy"]) == (1, {"type": "Recreate"})
    budgets = [budget["metadata"]["name"] for budget in of_kind(resources, "PodDisruptionBudget")]
    assert budgets == ["sploot-sploot-cluster-server", "sploot-sploot-cluster-worker"]


def test_only_scrapers_and_callers_come_in_and_only_redis_and_names_go_out() -> None:
    found = of_kind(render({}), "NetworkPolicy")
    policies = {policy["metadata"]["name"].rpartition("-")[2]: policy["spec"] for policy in found}

    assert set(policies) == set(COMPONENTS)
    assert all(policy["policyTypes"] == ["Ingress", "Egress"] for policy in policies.values())
    assert policies["scheduler"]["ingress"] == []
    (worker,) = policies["worker"]["ingress"]
    assert worker["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    assert worker["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    for policy in policies.values():
        ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
        assert ports == {53, 6379}


# -- scaling ---------------------------------------------------------------------------------------------------------


def test_replicas_are_left_to_whoever_scales() -> None:
    assert of_component(render({}), "Deployment", "worker")["spec"]["replicas"] == 2
    for path in VALUES.glob("keda-*.yaml"):
        assert "replicas" not in of_component(render(loaded(path)), "Deployment", "worker")["spec"]
    assert "replicas" not in of_component(render(loaded(VALUES / "hpa-values.yaml")), "Deployment", "worker")["spec"]


def test_keda_looks_at_what_was_never_delivered_and_at_what_is_delayed() -> None:
    (scaled,) = of_kind(render(loaded(VALUES / "keda-values.yaml")), "ScaledObject")

    triggers = [trigger["metadata"] for trigger in scaled["spec"]["triggers"]]
    streams = {trigger["stream"] for trigger in triggers if "stream" in trigger}
    assert streams == {f"streams:{queue}" for queue in QUEUES if queue != "cluster.maintenance"}
    assert {trigger["listName"] for trigger in triggers if "listName" in trigger} == {
        f"{{{stream}}}:delayed" for stream in streams
    }
    # pending entries and lag see nothing of a pool that is at zero
    assert all({"pendingEntriesCount", "lagCount", "consumerGroup"}.isdisjoint(trigger) for trigger in triggers)
    assert scaled["spec"]["minReplicaCount"] == 0
    assert all(isinstance(value, str) for trigger in triggers for value in trigger.values())


def test_the_autoscaler_adds_undelivered_jobs_up() -> None:
    (hpa,) = of_kind(render(loaded(VALUES / "hpa-values.yaml")), "HorizontalPodAutoscaler")

    (metric,) = hpa["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == "sploot_cluster_undelivered_jobs"
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "500"}
    assert hpa["spec"]["minReplicas"] == 2


# -- true to the project ---------------------------------------------------------------------------------------------


def test_what_is_copied_into_the_chart_is_what_it_was_copied_from() -> None:
    assert stale() == [], "make chart-files"
    assert set(COPIES.values()) >= {"ops/alerts/*.yaml", "ops/dashboards/*.json"}


def test_the_rules_are_those_of_ops_and_prometheus_takes_them(tmp_path: Path) -> None:
    sources = sorted((ROOT / "ops" / "alerts").glob("*.yaml"))
    assert sources

    (rule,) = of_kind(everything(), "PrometheusRule")

    groups = [group for source in sources for group in yaml.safe_load(source.read_text())["groups"]]
    assert rule["spec"]["groups"] == groups
    if shutil.which("promtool") is None:
        lacking("promtool", "apt-get install prometheus")
    rendered = tmp_path / "rules.yaml"
    rendered.write_text(yaml.safe_dump({"groups": rule["spec"]["groups"]}))
    checked = subprocess.run(["promtool", "check", "rules", rendered], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_rules_find_the_job_that_the_podmonitor_makes() -> None:
    (monitor,) = of_kind(everything(), "PodMonitor")

    assert monitor["spec"]["jobLabel"] == "app"
    jobs = {
        endpoint["port"]: [rule["replacement"] for rule in endpoint["relabelings"] if rule["targetLabel"] == "job"]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
    }
    # as in ops/config/prometheus.yaml: workers are what jobLabel says, servers are another job
    assert jobs == {"metrics": [], "http": ["sploot-cluster-server"]}
    config = yaml.safe_load((ROOT / "ops" / "config" / "prometheus.yaml").read_text())
    scraped = {job["job_name"] for job in config["scrape_configs"]}
    assert {"sploot-cluster", "sploot-cluster-server"} <= scraped


def test_the_dashboard_is_that_of_ops() -> None:
    (dashboard,) = [r for r in of_kind(everything(), "ConfigMap") if r["metadata"]["name"].endswith("-dashboard")]

    (source,) = (ROOT / "ops" / "dashboards").glob("*.json")
    assert json.loads(dashboard["data"][source.name]) == json.loads(source.read_text())
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_alertmanager_gets_the_projects_routes_and_the_files_that_they_name() -> None:
    resources = everything()
    config = (ROOT / "ops" / "config" / "alertmanager.yaml").read_text()

    deployment = of_component(resources, "Deployment", "alertmanager")
    (mapped,) = [r for r in of_kind(resources, "ConfigMap") if r["metadata"]["name"].endswith("-alertmanager")]

    assert yaml.safe_load(mapped["data"]["alertmanager.yaml"]) == yaml.safe_load(config)
    (secrets,) = [volume for volume in pod_of(deployment)["volumes"] if volume["name"] == "secrets"]
    for item in secrets["secret"]["items"]:
        assert f"/etc/alertmanager/secrets/{item['path']}" in config


def test_the_flag_of_the_rollout_reaches_server_worker_and_other_producers() -> None:
    for percent in (0, 25, EVERYBODY):
        resources = render({"ingest": {"rolloutPercent": percent}})
        for component in ("server", "worker"):
            environ = environment_of(of_component(resources, "Deployment", component))
            assert environ["SPLOOT_INGEST_ROLLOUT_PERCENT"] == str(percent)
        (shared,) = [r for r in of_kind(resources, "ConfigMap") if r["metadata"]["name"].endswith("-rollout")]
        assert shared["data"] == {"SPLOOT_INGEST_ROLLOUT_PERCENT": str(percent)}


def test_the_notes_say_what_is_missing() -> None:
    told = notes({"ingest": {"rolloutPercent": 10}})

    assert "media of 10 % of the pets" in told
    assert "Nobody is paged" in told
    assert "sploot-cluster-redis, key url" in told
    assert "kubectl get pod -l app=sploot-cluster -n media" in told
    assert "Nobody is paged" not in notes({"prometheusRule": {"enabled": True}})


def test_the_notes_say_who_is_told_while_no_worker_is_wanted() -> None:
    keda = loaded(VALUES / "keda-values.yaml")

    assert "MediaClusterNoWorkers pages" in notes({**keda, "autoscaling": {**keda["autoscaling"], "minReplicas": 0}})
    assert "MediaClusterNoWorkers" not in notes({**keda, "autoscaling": {**keda["autoscaling"], "minReplicas": 1}})


def test_the_tools_of_npm_are_those_that_are_named() -> None:
    assert (node_tools() / "node_modules" / "helm-binary" / "package.json").exists()
