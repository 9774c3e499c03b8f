"""The images that `make images` has built, each with one real task on a real broker and a real
object store."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from ase.build import bulk, molecule

from deploy.images import (
    OWN_BASE,
    PROXY,
    TARGETS,
    exists,
    find_base,
    find_builder,
    mirrors,
    pip_configuration,
    tag,
)
from dpstream.deploy.devcluster.free_ports import free_ports
from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from dpstream.services.labeler.recipes import make_recipe, read_files
from dpstream.shared import messages as m
from dpstream.shared.atoms.frames import Batch, canonical, decode_labelled, frame_key, from_ase
from dpstream.shared.codec import decode, encode, queue_of
from dpstream.shared.ports import Outgoing, Store
from dpstream.shared.spec import LabelSettings, Spec
from dpstream.shared.values import FrameRef, Ref, campaign_uri
from tests.support.deployments.deployed_cluster import Cluster, deployed, plan
from tests.support.deployments.deployment import Started, wait_until
from tests.support.deployments.images import Image, opened
from tests.support.programs.labeling_programs import require
from tests.support.workers.explorer import CH4, ExplorerHarness
from tests.support.workers.trainer import TrainerHarness

pytestmark = [pytest.mark.soak, pytest.mark.server]
PROMPT = 60.0
LONG = 180.0
LOOK_AROUND = """
import json, os
def writable(folder):
    for entry in os.scandir(folder):
        if not entry.is_symlink() and entry.path not in ("/proc", "/sys", "/dev"):
            if os.access(entry, os.W_OK):
                yield entry.path
            elif entry.is_dir() and os.access(entry, os.R_OK | os.X_OK):
                yield from writable(entry)
lines = (line.split(":") for line in open("/proc/self/status"))
print(json.dumps({"status": {k: v.split() for k, v in lines}, "writable": [*writable("/")]}))
"""
HYDROGEN = {"cutoff": 120, "basis": {"H": "SZV-MOLOPT-SR-GTH"}}
ALUMINIUM = {
    "pseudopotentials": {"Al": "Al.pz-vbc.UPF"},
    "ecutwfc": 12,
    "kpoints": [2, 2, 2],
    "smearing": "gaussian",
    "degauss": 0.03,
}


@pytest.fixture(scope="module")
def builder() -> str:
    found = find_builder()
    if found is None:
        pytest.skip("neither docker nor podman nor buildah works here")
    return found


@pytest.fixture(scope="module", params=TARGETS)
def image(request: pytest.FixtureRequest, builder: str) -> Iterator[Image]:
    if not exists(builder, tag(request.param)):
        pytest.skip(f"{tag(request.param)} is not built: run `make images`")
    with opened(builder, request.param) as image:
        yield image


def only(*targets: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("image", targets, indirect=True)


def test_it_explains_itself(image: Image) -> None:
    text, errors = (process := image.start("--help")).communicate(timeout=PROMPT)
    assert process.returncode == 0, errors
    assert "DPSTREAM_BROKER" in text


def test_without_settings_it_ends_with_one_line(image: Image) -> None:
    text, errors = (process := image.start()).communicate(timeout=PROMPT)
    assert process.returncode == 2, errors
    assert len((text + errors).splitlines()) == 1
    assert "DPSTREAM_" in text + errors


def test_it_has_no_rights_and_can_write_nowhere_else(image: Image) -> None:
    text, errors = image.execute(["python", "-c", LOOK_AROUND]).communicate(timeout=PROMPT)
    assert text, errors
    found = json.loads(text)
    assert set(found["writable"]) <= {"/tmp", "/scratch"}
    assert "/tmp" in found["writable"]
    assert ("/scratch" in found["writable"]) or image.target == "coordinator"
    status = found["status"]
    assert set(status["Uid"]) == set(status["Gid"]) == {"65532"}
    assert status["Groups"] in ([], ["65532"])
    assert {int(status[each][0], 16) for each in ("CapPrm", "CapEff", "CapBnd", "CapInh")} == {0}
    assert status["NoNewPrivs"] == ["1"]


def test_its_own_user_has_no_rights(image: Image) -> None:
    assert image.settings["User"] == "65532:65532"


def test_it_keeps_nothing_of_the_machine_that_built_it(image: Image) -> None:
    """The files are searched if the base image is our own: others name mirrors of theirs."""
    assert not [name for name in image.environment if PROXY.fullmatch(name)]
    code = "import os; print(os.path.exists('/etc/pip.conf'), os.listdir('/opt'))"
    text, errors = image.execute(["python", "-c", code]).communicate(timeout=PROMPT)
    assert text == "False ['dpstream']\n", errors
    if image.root is None or find_base(image.builder) != OWN_BASE:
        return
    used = "\n".join([*mirrors(), pip_configuration()])
    hosts = {host.encode() for host in re.findall(r"https?://([^/\s]+)", used)}
    assert hosts
    for folder in ("etc", "opt/dpstream/bin", "root", "var"):
        for file in (image.root / folder).rglob("*"):
            if file.is_file() and not file.is_symlink():
                content = file.read_bytes()
                assert not [host for host in hosts if host in content], file


# --------------------------------------------------------------------------------------- the tasks


@pytest.fixture
def cluster(rabbit_node: RabbitNode, seaweed: SeaweedServer) -> Iterator[Cluster]:
    cluster = deployed(rabbit_node, seaweed)
    yield cluster
    cluster.close()


def started(cluster: Cluster, image: Image, **environment: str) -> Started:
    """The image's service; `close` of the cluster ends it at the latest."""
    service = Started(image.start(**cluster.environment, **environment))
    cluster.started.append(service)
    return service


def result_of(command: m.Command, cluster: Cluster, image: Image) -> Any:
    """The last event of the task that `command` gives to the image's worker, which is stopped."""
    with closing(cluster.bus()) as bus:
        events = bus.consume("coordinator", prefetch=100)
        bus.publish([Outgoing(encode(command), queue=queue_of(command))])
        port = str(free_ports(1)[0])
        worker = started(cluster, image, DPSTREAM_HTTP_PORT=port)
        while True:
            delivery = events.next(LONG)
            assert delivery is not None, (worker.log_lines[-5:], worker.other_lines[-20:])
            delivery.ack()
            event = decode(delivery.body)
            assert not isinstance(event, m.TaskFailed | m.TaskReleased), event
            if isinstance(event, m.Result) and getattr(event, "last", True):
                break
    image.terminate(worker.process)
    assert worker.ended() == 0, worker.other_lines[-20:]
    return event


def copy(source: Store, target: Store) -> None:
    for key in source.list(""):
        target.put(key, source.get(key))


@only("coordinator")
def test_the_coordinator_runs_a_campaign(image: Image, cluster: Cluster) -> None:
    port = str(free_ports(1)[0])
    service = started(cluster, image, DPSTREAM_HTTP_PORT=port)
    wait_until(lambda: is_ready(port), "the coordinator to be ready")
    cluster.submit(plan())
    with cluster.prompt_worker():
        state = cluster.finish()
    assert state.finished is not None
    assert state.finished.verdict == "converged"
    image.terminate(service.process)
    assert service.ended() == 0, service.other_lines[-20:]


def is_ready(port: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as reply:
        return bool(reply.status == 200)
    return False


@only("trainer")
def test_the_trainer_trains_a_model(image: Image, cluster: Cluster, tmp_path: Path) -> None:
    harness = TrainerHarness(tmp_path)
    command = harness.command({"compress": False}, steps=40)
    copy(harness.store, cluster.store)
    trained = result_of(command, cluster, image)
    assert trained.steps == 40
    assert cluster.store.get(trained.model.uri)


@only("explorer")
def test_the_explorer_runs_a_trajectory(
    image: Image, cluster: Cluster, tmp_path: Path, methane_committee: list[Path]
) -> None:
    harness = ExplorerHarness(tmp_path, CH4, methane_committee)
    copy(harness.store, cluster.store)
    explored = result_of(harness.explore(), cluster, image)
    assert explored.counts.total > 0
    assert explored.stopped is None


@only("labeler")
def test_the_labeler_labels_with_tblite(image: Image, cluster: Cluster) -> None:
    label_one_frame(image, cluster, molecule("CH4"), "tblite", {})


@only("cp2k")
def test_the_labeler_labels_with_cp2k(image: Image, cluster: Cluster) -> None:
    hydrogen = molecule("H2", cell=[4.2, 4.4, 4.6], pbc=True)
    label_one_frame(image, cluster, hydrogen, "cp2k", HYDROGEN)


@only("espresso")
def test_the_labeler_labels_with_quantum_espresso(image: Image, cluster: Cluster) -> None:
    label_one_frame(image, cluster, bulk("Al", cubic=True), "qe", ALUMINIUM)


def label_one_frame(
    image: Image, cluster: Cluster, atoms: Atoms, code: str, settings: dict[str, Any]
) -> None:
    require(code)
    labels, files = read_files(LabelSettings(code=code, settings=settings), Path())
    spec = Spec.model_validate(
        {
            "name": "demo",
            "type_map": sorted(set(atoms.get_chemical_symbols())),
            "systems": {"s": {"structures": ["s.xyz"]}},
            "initial": {"perturb": {}},
            "stages": [{"name": "one", "systems": ["s"], "temperatures": [300]}],
            "labels": labels,
        }
    )

    def put(data: bytes, *name: str) -> Ref:
        ref = Ref.to(campaign_uri("demo", *name), data)
        cluster.store.create(ref.uri, data)
        return ref

    for digest, content in files.items():
        put(content, "inputs", digest)
    frame = canonical(from_ase(atoms)).frame
    batch = put(Batch.of([frame]).dumps(), "frames.npz")
    command = m.Label(
        id="command",
        campaign="demo",
        time=0.0,
        task="t1",
        title="a label",
        max_seconds=600.0,
        spec=put(spec.model_dump_json().encode(), "spec.json"),
        capability=code,
        recipe=make_recipe(spec.labels).digest,
        frames=(FrameRef(batch=batch, index=0, key=frame_key(frame)),),
    )
    done = result_of(command, cluster, image)
    assert not done.rejected, done
    _, label, _ = decode_labelled(cluster.store.get(done.accepted[0].label.uri))
    assert label.energy < 0
    assert label.forces.shape == frame.positions.shape
