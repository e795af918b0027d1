"""A stand-in for the part of the Kubernetes API that ``kubectl`` uses for the commands in our documents.

It serves the objects that the chart renders, in the order of their names as Kubernetes does, and a pod for each replica
of a Deployment. It records a command for a pod without running it, and records a request that it does not support as
unknown.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.charts.rendering import Resource

NAMESPACE: Final = "media"

# The resources of each API: plural -> kind.
APIS: Final = {
    "v1": {"pods": "Pod", "secrets": "Secret", "events": "Event"},
    "apps/v1": {"deployments": "Deployment"},
    "metrics.k8s.io/v1beta1": {"pods": "PodMetrics"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "keda.sh/v1alpha1": {"scaledobjects": "ScaledObject"},
}
_VERBS: Final = ["get", "list", "watch", "create", "patch", "update"]
_HANDSHAKE: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # a constant of RFC 6455
_STATUS_CHANNEL: Final = b"\x03"


@dataclass
class Cluster:
    """The state of the cluster, and the requests that it received.

    Attributes:
        listed: the names of the objects in the response to each list request with a label selector.
        ran: (pod, container, command) of each command that ran in a pod.
        logs: names of the pods whose logs were read.
        created: (kind, body) of each created object; the bodies are protobuf.
        unknown: method and path of each unsupported request.
    """

    objects: list[Resource]
    listed: list[list[str]] = field(default_factory=list)
    ran: list[tuple[str, str, list[str]]] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    created: list[tuple[str, bytes]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[Resource]:
        """Return the objects of a kind, ordered by name; pods are derived from the Deployments."""
        if kind == "Event":
            return []
        if kind in {"Pod", "PodMetrics"}:
            pods = [pod for deployment in self.of("Deployment") for pod in _pods_of(deployment)]
            return [_metrics_of(pod) for pod in pods] if kind == "PodMetrics" else pods
        return sorted(
            (one for one in self.objects if one["kind"] == kind), key=lambda one: str(one["metadata"]["name"])
        )

    def replicas(self) -> dict[str, int]:
        """Return the number of replicas of each Deployment, by name."""
        return {one["metadata"]["name"]: one["spec"].get("replicas", 1) for one in self.of("Deployment")}

    def answer(self, method: str, target: str, body: bytes) -> Any:
        """Return the JSON or text of the response to a request, or None if the resource does not exist."""
        url = urlsplit(target)
        words = url.path.strip("/").split("/")
        if len(words) == 1 or "/".join(words[1:]) in APIS:
            return _discovery(words)
        group = "/".join(words[1 : 2 if words[0] == "api" else 3])
        rest = words[2:] if words[0] == "api" else words[3:]
        if method == "POST":
            return self._created(rest, body)
        if rest[:2] != ["namespaces", NAMESPACE] or len(rest) < 3 or rest[2] not in APIS.get(group, {}):
            return None
        kind = APIS[group][rest[2]]
        if len(rest) == 3:
            return self._list(group, kind, parse_qs(url.query).get("labelSelector", [""])[0])
        named = [one for one in self.of(kind) if one["metadata"]["name"] == rest[3]]
        if not named or rest[4:] not in ([], ["log"], ["scale"]):
            return None
        found = named[0]
        if rest[4:] == ["log"]:
            self.logs.append(rest[3])
            return f"the last words of {rest[3]}\n"
        if method in {"PATCH", "PUT"}:
            if rest[2:] == ["deployments", rest[3]]:
                found = copy.deepcopy(found)  # not stored, because kubectl refuses a second restart
            _merge(found, json.loads(body))
        return _scale_of(found) if rest[4:] == ["scale"] else found

    def _list(self, group: str, kind: str, selector: str) -> Any:
        found = [one for one in self.of(kind) if is_selected(one["metadata"].get("labels", {}), selector)]
        if selector:
            self.listed.append([one["metadata"]["name"] for one in found])
        return {"kind": f"{kind}List", "apiVersion": group, "metadata": {}, "items": found}

    def _created(self, rest: Sequence[str], body: bytes) -> Any:
        kinds = {("namespaces",): "Namespace", ("namespaces", NAMESPACE, "secrets"): "Secret"}
        kind = kinds.get(tuple(rest))
        if kind is not None:
            self.created.append((kind, body))
        return kind and {"kind": kind, "apiVersion": "v1", "metadata": {"name": "created"}}


def is_selected(labels: dict[str, str], selector: str) -> bool:
    """Return whether labels match a selector of ``a=b`` and ``a in (b,c)``."""
    wanted = []
    while selector:
        if " in (" in selector.partition("=")[0]:
            key, _, rest = selector.partition(" in (")
            values, _, selector = rest.partition(")")
        else:
            one, _, selector = selector.partition(",")
            key, _, values = one.partition("=")
        wanted.append((key, values.split(",")))
        selector = selector.removeprefix(",")
    return all(labels.get(key) in values for key, values in wanted)


def _discovery(words: Sequence[str]) -> Any:
    if words == ["version"]:
        return {"major": "1", "minor": "37", "gitVersion": "v1.37.0"}
    if words == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    if words == ["apis"]:
        named = [{"groupVersion": api, "version": api.partition("/")[2]} for api in APIS if "/" in api]
        groups = [{"name": api["groupVersion"].partition("/")[0], "versions": [api], "preferredVersion": api}
                  for api in named]  # fmt: skip
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    group = "/".join(words[1:])
    resources = [
        {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": True, "verbs": _VERBS}
        for plural, kind in APIS.get(group, {}).items()
    ]
    if group == "apps/v1":
        scale = {"name": "deployments/scale", "kind": "Scale", "group": "autoscaling", "version": "v1"}
        resources.append({**resources[0], **scale})
    return {"kind": "APIResourceList", "groupVersion": group, "resources": resources}


def _pods_of(deployment: Resource) -> Iterator[Resource]:
    template = deployment["spec"]["template"]
    for number in range(deployment["spec"].get("replicas", 1)):
        name = f"{deployment['metadata']['name']}-6f7d9c8b5d-{number}xk2p"
        started = {"name": template["spec"]["containers"][0]["name"], "restartCount": 0, "state": {"running": {}}}
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": template["metadata"]["labels"]},
            "spec": {**copy.deepcopy(template["spec"]), "nodeName": "node-1"},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [started]},
        }


def _metrics_of(pod: Resource) -> Resource:
    used = {"name": pod["spec"]["containers"][0]["name"], "usage": {"cpu": "12m", "memory": "90Mi"}}
    about = {"timestamp": "2026-11-30T00:00:00Z", "window": "10s", "containers": [used]}
    return {"kind": "PodMetrics", "metadata": pod["metadata"], **about}


def _scale_of(deployment: Resource) -> Resource:
    replicas = deployment["spec"].get("replicas", 1)
    about = {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": deployment["metadata"]}
    return {**about, "spec": {"replicas": replicas}, "status": {"replicas": replicas}}


def _merge(into: Any, patch: Any) -> None:
    """Apply a JSON merge patch."""
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif value is None:
            into.pop(key, None)
        elif key not in {"apiVersion", "kind", "status"}:
            into[key] = value


@contextmanager
def serving(cluster: Cluster, directory: Path) -> Iterator[Path]:
    """Serve the cluster until the block ends; yield the kubeconfig that refers to it."""

    class Api(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.headers.get("Upgrade", "").lower() == "websocket":
                self._run_in_pod()
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = cluster.answer(self.command, self.path, body)
            if answer is None:
                cluster.unknown.append(f"{self.command} {self.path}")
            reason = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            text = answer.encode() if isinstance(answer, str) else json.dumps(answer or reason).encode()
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815  the names are http.server's

        def _run_in_pod(self) -> None:
            """Record a command for a pod, and report success on the status channel."""
            url = urlsplit(self.path)
            asked = parse_qs(url.query)
            cluster.ran.append((url.path.split("/")[-2], asked["container"][0], asked["command"]))
            key = hashlib.sha1(self.headers["Sec-WebSocket-Key"].encode() + _HANDSHAKE).digest()
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(key).decode())
            self.send_header("Sec-WebSocket-Protocol", "v5.channel.k8s.io")
            self.end_headers()
            message = _STATUS_CHANNEL + json.dumps({"metadata": {}, "status": "Success"}).encode()
            self.wfile.write(bytes([0x82, len(message)]) + message + bytes([0x88, 2]) + (1000).to_bytes(2, "big"))
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield _kubeconfig(directory / "kubeconfig", f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()


def _kubeconfig(file: Path, address: str) -> Path:
    parts = {
        "clusters": [{"name": "test", "cluster": {"server": address}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": ""}}],
    }
    # JSON is valid YAML
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "test", **parts}))
    return file
