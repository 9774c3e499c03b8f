"""The manifests in `k8s/`: they render, Kubernetes knows every field, and the security rules hold.

Custom resources (Karpenter, Prometheus Operator) have no schema here: only their kinds, and the
fields on which other files depend, are checked.
"""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils

from dpstream.deploy.access_files import parse_deployment, write_access
from dpstream.services.coordinator.fleet.engines.worker_job import worker_job
from dpstream.services.coordinator.fleet.pools import FleetFile, read_fleet
from dpstream.services.coordinator.fleet.status import FleetStatus, PoolStatus
from dpstream.services.coordinator.http.api import UNGUARDED
from dpstream.services.coordinator.http.metrics import _fleet
from dpstream.services.coordinator.settings import CoordinatorSettings
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.shared.access import ROLES
from dpstream.shared.codec import decode
from dpstream.shared.messages import StructuresProposed
from dpstream.shared.settings import Settings, read_settings, variable_of
from dpstream.shared.spec.times import seconds_of

ROOT = Path(__file__).parents[3]
K8S = ROOT / "k8s"
KUBECTL = Path(sys.executable).with_name("kubectl")
OVERLAYS = ("local", "aws", "alibaba")
VERSIONS = ("1.30", "1.32", "1.34", "1.36")
SERVICES = ("coordinator", "trainer", "explorer", "labeler")
WORKERS = SERVICES[1:]
CUSTOM = {
    ("karpenter.sh/v1", "NodePool"): {"template", "limits", "disruption"},
    ("karpenter.k8s.aws/v1", "EC2NodeClass"): {
        "role",
        "amiSelectorTerms",
        "subnetSelectorTerms",
        "securityGroupSelectorTerms",
        "metadataOptions",
        "blockDeviceMappings",
    },
    ("monitoring.coreos.com/v1", "PodMonitor"): {
        "selector",
        "podMetricsEndpoints",
        "podTargetLabels",
    },
    ("monitoring.coreos.com/v1", "PrometheusRule"): {"groups"},
}
"""Custom resources with the keys of their `spec` that are used."""
NAME, PART_OF = "app.kubernetes.io/name", "app.kubernetes.io/part-of"
SECRET = re.compile("PASSWORD|SECRET|TOKEN|ACCESS_KEY|BROKER")

Object = dict[str, Any]
utils.schema_contents = cache(utils.schema_contents)  # else it reads megabytes for each object


@cache
def rendered(overlay: str) -> tuple[Object, ...]:
    return kustomized(K8S / "overlays" / overlay)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Object, ...]]:
    """An overlay with the components that it leaves out."""

    @cache
    def render(overlay: str) -> tuple[Object, ...]:
        folder = tmp_path_factory.mktemp(overlay)
        parts = {
            "resources": [K8S / "overlays" / overlay],
            "components": [K8S / "components" / name for name in ("monitoring", "generator")],
        }
        lines = {key: [os.path.relpath(p, folder) for p in paths] for key, paths in parts.items()}
        (folder / "kustomization.yaml").write_text(json.dumps(lines))
        return kustomized(folder)

    return render


def kustomized(folder: Path) -> tuple[Object, ...]:
    done = subprocess.run(
        [KUBECTL, "kustomize", folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings of deprecated fields
    return tuple(yaml.safe_load_all(done.stdout))


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest, complete: Any) -> tuple[Object, ...]:
    found: tuple[Object, ...] = complete(request.param)
    return found


@pytest.fixture(params=OVERLAYS)
def everything(request: pytest.FixtureRequest, complete: Any) -> tuple[Object, ...]:
    """The same with the Jobs of workers, as the fleet engine makes them."""
    return (*complete(request.param), *worker_jobs(request.param))


@cache
def worker_jobs(overlay: str) -> tuple[Object, ...]:
    file = fleet(overlay)
    return tuple(
        worker_job(file.deployment, name, pool, f"{name}-1", 1) for name, pool in file.pools.items()
    )


def of_kind(objects: tuple[Object, ...], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def named(objects: tuple[Object, ...], kind: str, name: str) -> Object:
    (found,) = (each for each in of_kind(objects, kind) if each["metadata"]["name"] == name)
    return found


def templates(objects: tuple[Object, ...]) -> Iterator[Object]:
    """The template of every pod."""
    for each in of_kind(objects, "StatefulSet", "Job", "CronJob"):
        spec = each["spec"]
        yield (spec.get("jobTemplate", {}).get("spec") or spec)["template"]


def containers(objects: tuple[Object, ...]) -> Iterator[Object]:
    for template in templates(objects):
        yield from template["spec"].get("initContainers", [])
        yield from template["spec"]["containers"]


def coordinator(objects: tuple[Object, ...]) -> Object:
    pod: Object = named(objects, "StatefulSet", "dpstream-coordinator")["spec"]["template"]["spec"]
    return pod


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector, of the forms used here, selects these labels."""
    rules = selector.get("matchExpressions", [])
    assert all(rule["operator"] == "In" for rule in rules)
    exact = selector.get("matchLabels", {}).items()
    return exact <= labels.items() and all(labels.get(r["key"]) in r["values"] for r in rules)


def of_service(service: str) -> dict[str, str]:
    """The labels of a pod of that service, as manifests and fleet engine give them."""
    return {NAME: f"dpstream-{service}", PART_OF: "dpstream"}


def fleet(overlay: str) -> FleetFile:
    return read_fleet(K8S / "overlays" / overlay / "fleet.yaml")


# --------------------------------------------------------------------------------------- schemas


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(complete: Any, version: str) -> None:
    assert version in {utils.major_minor(each) for each in utils.all_versions()}
    each_once = (o for overlay in OVERLAYS for o in (*complete(overlay), *worker_jobs(overlay)))
    found = {yaml.dump(each): each for each in each_once}
    for each in found.values():
        if (each["apiVersion"], each["kind"]) not in CUSTOM:
            kubernetes_validate.validate(each, version, strict=True)


def test_a_wrong_field_would_be_found() -> None:
    wrong = {**rendered("local")[0], "aliens": 1}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.slow
def test_custom_resources_have_known_kinds_and_keys(objects: tuple[Object, ...]) -> None:
    for each in objects:
        if "." in each["apiVersion"] and ".k8s.io/" not in each["apiVersion"]:
            assert each["spec"].keys() <= CUSTOM[each["apiVersion"], each["kind"]]


@pytest.mark.parametrize("overlay", ["aws", "alibaba"])
def test_workers_with_the_images_for_gpus_get_one_and_demand_it(overlay: str) -> None:
    for job in worker_jobs(overlay):
        (container,) = job["spec"]["template"]["spec"]["containers"]
        given = {each["name"]: each.get("value") for each in container["env"]}
        on_gpu = container["image"].endswith("-cuda")
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == on_gpu
        assert given.get("DPSTREAM_DEVICE") == ("cuda" if on_gpu else None)
        if on_gpu and "explorer" in container["image"]:
            assert given["DPSTREAM_EXPLORER_MODELS"] == ".pth", "members are trained with PyTorch"


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_needs_no_component_that_it_does_not_name(overlay: str, complete: Any) -> None:
    """Any cluster accepts the overlay `local`: it has no custom resource."""
    plain = rendered(overlay)
    assert all(each in complete(overlay) for each in plain)
    kinds = {(each["apiVersion"], each["kind"]) for each in plain} & CUSTOM.keys()
    assert {kind for _, kind in kinds} == (
        {"NodePool", "EC2NodeClass"} if overlay == "aws" else set()
    )


# ------------------------------------------------------------------------------------- hardening


def test_the_namespace_enforces_the_restricted_standard(everything: tuple[Object, ...]) -> None:
    (namespace,) = of_kind(everything, "Namespace")
    for mode in ("enforce", "warn", "audit"):
        assert namespace["metadata"]["labels"][f"pod-security.kubernetes.io/{mode}"] == "restricted"
    inside = {
        each["metadata"].get("namespace")
        for each in everything
        if each["kind"] not in ("Namespace", "NodePool", "EC2NodeClass")
    }
    assert inside == {namespace["metadata"]["name"]}


def test_pods_meet_the_restricted_standard(everything: tuple[Object, ...]) -> None:
    pods = [template["spec"] for template in templates(everything)]
    assert len(pods) >= 2
    for pod in pods:
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == context["runAsGroup"] == user_of(pod)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod.keys()
        kinds = {kind for volume in pod["volumes"] for kind in volume.keys() - {"name"}}
        assert kinds <= {"configMap", "emptyDir", "secret"}
    for container in containers(everything):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def user_of(pod: Object) -> int:
    image = pod["containers"][0]["image"]
    return 999 if image.startswith("rabbitmq:") else 65532


def test_what_pods_use_is_limited(everything: tuple[Object, ...]) -> None:
    for template in templates(everything):
        for volume in template["spec"]["volumes"]:
            assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": "1Gi"}), volume
    for container in containers(everything):
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"])


def test_only_the_coordinator_gets_an_api_token(everything: tuple[Object, ...]) -> None:
    accounts = of_kind(everything, "ServiceAccount")
    assert {a["metadata"]["name"] for a in accounts} == {
        f"dpstream-{name}" for name in (*SERVICES, "generator")
    }
    assert all(account["automountServiceAccountToken"] is False for account in accounts)
    for template in templates(everything):
        ours = template["metadata"]["labels"][NAME] == "dpstream-coordinator"
        assert template["spec"]["automountServiceAccountToken"] is ours
    assert coordinator(everything)["serviceAccountName"] == "dpstream-coordinator"


def test_the_coordinator_may_manage_jobs_and_nothing_else(objects: tuple[Object, ...]) -> None:
    assert not of_kind(objects, "ClusterRole", "ClusterRoleBinding")
    (role,), (binding,) = of_kind(objects, "Role"), of_kind(objects, "RoleBinding")
    rights = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert rights == {
        ("batch", "jobs"): {"list", "create", "patch", "delete"},
        ("", "pods"): {"list"},
        ("", "events"): {"list"},
    }
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [s["name"] for s in binding["subjects"]] == ["dpstream-coordinator"]


def test_images_have_a_version_and_ours_the_present_one(everything: tuple[Object, ...]) -> None:
    for image in {container["image"] for container in containers(everything)}:
        name, _, tag = image.rpartition(":")
        assert re.fullmatch(r"\d+\.\d+(\.\d+)?(-[a-z0-9]+)?", tag), image
        if "dpstream" in name:
            assert tag.partition("-")[0] == metadata.version("dpstream"), image


def test_registries_are_placeholders() -> None:
    for file in files():
        for host in re.findall(r"image: ([\w.-]+\.\w+)/", file.read_text()):
            assert host.endswith(".example.org"), (file, host)


# --------------------------------------------------------------------------------------- secrets


def files() -> list[Path]:
    return [file for file in K8S.rglob("*") if file.is_file()]


def test_manifests_hold_no_secret(objects: tuple[Object, ...]) -> None:
    assert not of_kind(objects, "Secret")
    for container in containers(objects):
        for variable in container.get("env", []):
            assert "value" not in variable or not SECRET.search(variable["name"])
    for file in files():
        for secret in re.findall(r"//[^\s/:@]+:([^\s/@]+)@", file.read_text()):
            assert secret == "$PASSWORD", file
        for line in re.findall(r"^DPSTREAM_\w*(?:KEY|TOKEN)=.*", file.read_text(), re.MULTILINE):
            assert line.partition("=")[2].startswith("$"), file


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("access")
    write_access(parse_deployment(",".join(ROLES), "dpstream", "", "dpstream", ""), folder)
    return folder


def secrets_by(script: str, *arguments: object) -> dict[str, dict[str, str]]:
    """The Secrets that a script prints, by name."""
    done = subprocess.run(
        [K8S / script, *map(str, arguments)],
        env={"PATH": f"{KUBECTL.parent}:{os.defpath}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    return {
        each["metadata"]["name"]: {k: b64decode(v).decode() for k, v in each["data"].items()}
        for each in yaml.safe_load_all(done.stdout)
    }


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_secret_that_is_named_is_printed_by_the_scripts(
    overlay: str, access: Path, complete: Any
) -> None:
    printed = secrets_by("secrets.sh", access, K8S / "overlays" / overlay)
    assert printed.keys() == {f"dpstream-{name}" for name in (*SERVICES, "generator")}
    if overlay == "local":
        printed |= secrets_by("components/servers/secrets.sh", access)
    objects = complete(overlay)
    named_here = {
        source["secretRef"]["name"]
        for container in containers(objects)
        for source in container.get("envFrom", [])
    }
    for template in templates(objects):
        named_here |= {
            v["secret"]["secretName"] for v in template["spec"]["volumes"] if "secret" in v
        }
    named_here |= {pool.kubernetes.secret for pool in fleet(overlay).pools.values()}
    assert named_here == printed.keys()


SETTINGS = {"coordinator": CoordinatorSettings, "labeler": LabelerSettings}


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_the_settings_of_their_service(
    overlay: str, access: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, values in secrets_by("secrets.sh", access, K8S / "overlays" / overlay).items():
        service = name.removeprefix("dpstream-")
        with monkeypatch.context() as environment:
            for variable in [each for each in os.environ if each.startswith("DPSTREAM_")]:
                environment.delenv(variable)
            for variable, value in values.items():
                environment.setenv(variable, value)
            kind = SETTINGS.get(service, Settings)
            found = read_settings(kind)
        assert f"//{service}:" in found.broker.get_secret_value()
        assert (found.store_access_key is None) == (overlay != "local")
        known = {variable_of(field) for field in kind.model_fields}
        assert {each for each in values if each.startswith("DPSTREAM_")} <= known
        if service == "coordinator":
            assert found.api_token is not None
        assert ("DPSTREAM_LABELER_SIGNING_KEY" in values) == (service == "labeler")


# --------------------------------------------------------------------------------------- network


def policies(objects: tuple[Object, ...], direction: str, labels: dict[str, str]) -> list[Object]:
    """The rules that open a direction for pods with these labels."""
    return [
        rule
        for policy in of_kind(objects, "NetworkPolicy")
        if selects(policy["spec"]["podSelector"], labels)
        for rule in policy["spec"].get(direction, [])
    ]


def ports(rules: list[Object]) -> set[int]:
    assert all(rule["ports"] for rule in rules), "a rule without ports opens all"
    return {port["port"] for rule in rules for port in rule["ports"]}


def test_everything_is_denied_both_ways_unless_a_rule_opens_it(objects: tuple[Object, ...]) -> None:
    deny = named(objects, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in of_kind(objects, "NetworkPolicy"):
        spec = policy["spec"]
        for direction in ("ingress", "egress"):
            assert ports(spec.get(direction, [])) >= set()
            assert direction not in spec or direction.capitalize() in spec["policyTypes"]
        for rule in spec.get("ingress", []):
            assert rule["from"], policy


@pytest.mark.parametrize("service", WORKERS)
def test_workers_reach_names_broker_and_store(objects: tuple[Object, ...], service: str) -> None:
    opened = ports(policies(objects, "egress", of_service(service)))
    broker, store = opened & {5671, 5672}, opened & {443, 8333}
    assert len(broker) == len(store) == 1
    assert opened == {53} | broker | store
    assert ports(policies(objects, "ingress", of_service(service))) == {8080}  # metrics


def test_workers_are_reached_by_nobody_without_monitoring() -> None:
    for overlay in OVERLAYS:
        for service in WORKERS:
            assert policies(rendered(overlay), "ingress", of_service(service)) == []


def test_only_the_coordinator_reaches_the_kubernetes_api(objects: tuple[Object, ...]) -> None:
    rule = named(objects, "NetworkPolicy", "kubernetes-api")["spec"]
    assert rule["podSelector"] == {"matchLabels": {NAME: "dpstream-coordinator"}}
    for service in SERVICES:
        opened = ports(policies(objects, "egress", of_service(service)))
        assert (6443 in opened) == (service == "coordinator")


def test_the_metadata_of_nodes_is_closed(objects: tuple[Object, ...]) -> None:
    for policy in of_kind(objects, "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            for peer in rule.get("to", []):
                if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0":
                    assert peer["ipBlock"]["except"], policy


def test_an_overlay_states_where_broker_and_store_are(objects: tuple[Object, ...]) -> None:
    for name in ("broker", "store"):
        (rule,) = named(objects, "NetworkPolicy", name)["spec"]["egress"]
        assert rule["to"]


def test_servers_of_the_overlay_local_serve_its_services() -> None:
    objects = rendered("local")
    for server, port in (("broker", 5672), ("store", 8333)):
        rules = policies(objects, "ingress", {NAME: f"dpstream-{server}", PART_OF: "dpstream"})
        assert ports(rules) == {port}
        peers = [peer["podSelector"] for rule in rules for peer in rule["from"]]
        for service in SERVICES:
            assert any(selects(peer, of_service(service)) for peer in peers)


# ----------------------------------------------------------------------------------- coordinator


def test_probes_reach_the_coordinator(objects: tuple[Object, ...]) -> None:
    (container,) = coordinator(objects)["containers"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    assert given["DPSTREAM_HTTP_HOST"] == "0.0.0.0"  # it listens on the loopback interface else
    assert container["ports"] == [
        {"name": "http", "containerPort": int(given["DPSTREAM_HTTP_PORT"])}
    ]
    probes = {
        kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")
    }
    assert {probe["path"] for probe in probes.values()} == set(UNGUARDED)
    assert probes["readiness"]["path"] == "/readyz"
    assert all(probe["port"] == "http" for probe in probes.values())
    known = {variable_of(field) for field in CoordinatorSettings.model_fields}
    assert given.keys() <= known


def test_there_is_one_coordinator(objects: tuple[Object, ...]) -> None:
    (found,) = (
        each["spec"]
        for each in of_kind(objects, "StatefulSet")
        if each["metadata"]["labels"] == of_service("coordinator")
    )
    assert found["replicas"] == 1
    service = named(objects, "Service", found["serviceName"])["spec"]
    assert selects({"matchLabels": service["selector"]}, found["template"]["metadata"]["labels"])


def test_workers_come_from_the_fleet_alone(objects: tuple[Object, ...]) -> None:
    """The only template of a worker's pod is that of the fleet engine."""
    assert not of_kind(objects, "Deployment", "DaemonSet", "ReplicaSet")
    made = {template["metadata"]["labels"][NAME] for template in templates(objects)}
    assert not made & {f"dpstream-{service}" for service in WORKERS}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_coordinator_reads_the_fleet_file_of_its_overlay(overlay: str) -> None:
    objects = rendered(overlay)
    pod = coordinator(objects)
    (container,) = pod["containers"]
    path = Path(next(v["value"] for v in container["env"] if v["name"] == "DPSTREAM_FLEET"))
    (mount,) = (each for each in container["volumeMounts"] if each["mountPath"] == str(path.parent))
    assert "subPath" not in mount  # its file would never change
    (volume,) = (each for each in pod["volumes"] if each["name"] == mount["name"])
    config = named(objects, "ConfigMap", volume["configMap"]["name"])
    assert config["data"][path.name] == (K8S / "overlays" / overlay / "fleet.yaml").read_text()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pools_run_with_the_accounts_of_the_namespace(overlay: str) -> None:
    file, objects = fleet(overlay), rendered(overlay)
    accounts = {each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")}
    assert {pool.service for pool in file.pools.values()} == set(WORKERS)
    for name, pool in file.pools.items():
        settings = pool.kubernetes
        assert pool.engine == "kubernetes"
        assert settings.namespace == "dpstream"
        assert (settings.service_account or f"dpstream-{pool.service}") in accounts
        assert settings.secret == f"dpstream-{pool.service}"
        assert pool.memory, f"{name}: its pods would have no memory limit"
    for pool, job in zip(file.pools.values(), worker_jobs(overlay), strict=True):
        # The labels that network rules and monitors select.
        labels = job["spec"]["template"]["metadata"]["labels"]
        assert of_service(pool.service).items() <= labels.items()
    assert len({fleet(each).deployment for each in OVERLAYS}) == len(OVERLAYS)


# ---------------------------------------------------------------------------------------- clouds


def test_karpenter_has_nodes_for_every_pool_and_outlives_its_tasks() -> None:
    objects = rendered("aws")
    nodes = {each["metadata"]["name"]: each["spec"] for each in of_kind(objects, "NodePool")}
    (node_class,) = of_kind(objects, "EC2NodeClass")
    used = set()
    for pool in fleet("aws").pools.values():
        name = pool.kubernetes.node_selector["karpenter.sh/nodepool"]
        used.add(name)
        template = nodes[name]["template"]["spec"]
        assert template["nodeClassRef"]["name"] == node_class["metadata"]["name"]
        tolerated = {each["key"] for each in pool.kubernetes.tolerations}
        assert {taint["key"] for taint in template["taints"]} == tolerated
        longest = pool.lifetime + pool.longest_task + pool.grace
        assert seconds_of(template["expireAfter"]) > longest
        assert seconds_of(template["terminationGracePeriod"]) > longest
        kinds = next(
            set(each["values"])
            for each in template["requirements"]
            if each["key"] == "karpenter.sh/capacity-type"
        )
        assert pool.spot == ("spot" in kinds)
    assert used == set(nodes)


@pytest.mark.parametrize(
    ("overlay", "annotation"),
    [
        ("aws", "eks.amazonaws.com/role-arn"),
        ("alibaba", "pod-identity.alibabacloud.com/role-name"),
    ],
)
def test_roles_of_accounts_open_the_store(overlay: str, annotation: str) -> None:
    for service in SERVICES:
        account = named(rendered(overlay), "ServiceAccount", f"dpstream-{service}")
        role = account["metadata"]["annotations"][annotation]
        assert role.rpartition("/")[2] == f"dpstream-{service}"


# ------------------------------------------------------------------------------------ components


def test_monitoring_reads_all_metrics_with_the_token_of_the_api(complete: Any) -> None:
    objects = complete("local")
    monitors = of_kind(objects, "PodMonitor")
    (container,) = coordinator(objects)["containers"]
    for service in SERVICES:
        (monitor,) = (m for m in monitors if selects(m["spec"]["selector"], of_service(service)))
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
        credentials = endpoint.get("authorization", {}).get("credentials")
        if service == "coordinator":
            assert credentials["key"] == variable_of("api_token")
            assert {"secretRef": {"name": credentials["name"]}} in container["envFrom"]
        else:
            assert credentials is None


def test_alerts_name_what_to_do(complete: Any) -> None:
    (rules,) = of_kind(complete("local"), "PrometheusRule")
    (group,) = rules["spec"]["groups"]
    alerts = {rule["alert"]: rule for rule in group["rules"]}
    assert alerts["DpstreamBacklogWithoutWorkers"]["for"] == "15m"
    assert "dpstream_fleet_paused" in alerts["DpstreamPoolPaused"]["expr"]
    assert "dpstream_fleet_stale" in alerts["DpstreamStandingStale"]["expr"]
    assert alerts["DpstreamBudgetNearlyUsed"]["expr"].endswith(">= 0.8")
    for rule in alerts.values():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} == rule["annotations"].keys()


def test_alerts_name_metrics_that_exist(complete: Any) -> None:
    nothing = dict.fromkeys(PoolStatus.model_fields, 0) | {"ended": {}}
    pool = PoolStatus.model_construct(**nothing)
    found = list(_fleet(FleetStatus.model_construct(pools={"a": pool}, budget_used=0.0)))
    statuses = {s.labels["status"] for m in found for s in m.samples if "status" in s.labels}
    (rules,) = of_kind(complete("local"), "PrometheusRule")
    for rule in rules["spec"]["groups"][0]["rules"]:
        named_here = set(re.findall(r"dpstream_\w+", rule["expr"])) - {"dpstream_campaigns"}
        assert named_here <= {metric.name for metric in found}
        for values in re.findall(r'status=~?"([^"]*)"', rule["expr"]):
            assert set(values.split("|")) <= statuses


def test_the_generator_has_a_user_of_its_own_and_reaches_the_broker_alone(complete: Any) -> None:
    objects = complete("local")
    (template,) = (
        t for t in templates(objects) if t["metadata"]["labels"] == of_service("generator")
    )
    (container,) = template["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "dpstream-generator"}}]
    assert template["spec"]["serviceAccountName"] == "dpstream-generator"
    opened = ports(policies(objects, "egress", of_service("generator")))
    assert opened <= {53, 5671, 5672}
    assert policies(objects, "ingress", of_service("generator")) == []


def test_the_generator_offers_a_valid_proposal_with_what_its_image_has() -> None:
    script = K8S / "components/generator/propose.py"
    imports = {
        name.name
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.Import)
        for name in node.names
    }
    assert imports - sys.stdlib_module_names == {"pika"}
    assert "pika==" in (ROOT / "requirements/coordinator.txt").read_text()
    offered = decode(json.dumps(runpy.run_path(str(script))["proposal"]("methane")).encode())
    assert isinstance(offered, StructuresProposed)
    assert len(offered.frames) == 8
