"""External generators at a real campaign over a real broker: a committee judges what they offer,
tblite labels it, and they hear of it. Only the training is spared: its models are there already."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write

import dpstream.services.explorer.handlers as explorer
import dpstream.services.labeler.handlers as labeler
from dpstream.cli import main
from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.generators.client import Generator, Verdict
from dpstream.generators.watch_folder import WatchedFolder
from dpstream.inputs.gather import gather
from dpstream.running.submit import submit
from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.coordinator.state import State
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.labeler.recipes import make_recipe
from dpstream.services.labeler.resources import LabelerResources
from dpstream.shared import messages as m
from dpstream.shared.atoms.frames import canonical, decode_labelled, frame_key, from_ase
from dpstream.shared.bus.rabbit import RabbitBus, RabbitSettings
from dpstream.shared.codec import encode, topic_of
from dpstream.shared.errors import SpecError
from dpstream.shared.messages import MemberTrained, Train
from dpstream.shared.ports import Outgoing
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.worker import Worker
from dpstream.shared.spec import load_spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Ref, Rmse, campaign_uri, is_offered
from tests.support.campaigns.archived import frames_of, whole_state
from tests.support.campaigns.small_campaign import write_spec

DOCS = Path(__file__).parents[3] / "docs" / "generators.md"
EXAMPLE = Path(__file__).parents[3] / "examples" / "external-generator" / "generate.py"
COMPONENT = Path(__file__).parents[3] / "k8s" / "components" / "generator" / "propose.py"
PROMPT = 60.0
ENDLESS = {
    "name": "endless",
    "mode": "streaming",
    "training": {"members": 4},
    "md": {"timestep": 0.0005, "steps": 60, "every": 20, "trajectories": 1, "chunk": 3},
    "trust": {"low": 1e-6, "high": 100.0},
    "stages": [{"name": "warm", "systems": ["methane"], "temperatures": [300]}],
    "selection": {"per_round": 60, "per_trajectory": 1},
    "audit": {"per_round": 0},
    "convergence": {"accurate_ratio": 1.0},
    "budget": {"rounds": 10_000, "labels": 100_000},
    "proposals": {"max_atoms": 8},
}
"""Never accurate enough: it goes on for as long as the tests."""


@dataclass
class Deployment:
    node: RabbitNode
    root: Path
    made: list[Generator]

    def generator(self, name: str) -> Generator:
        generator = Generator.connect(self.node.url, str(self.root), "endless", name)
        self.made.append(generator)
        return generator

    @property
    def state(self) -> State:
        return whole_state(FolderStore(self.root), "endless")

    @property
    def environment(self) -> dict[str, str]:
        where = {"DPSTREAM_BROKER": self.node.url, "DPSTREAM_STORE": str(self.root)}
        return {**os.environ, **where, "COLUMNS": "120"}

    def run(self, script: Path, *arguments: str) -> str:
        """What a script prints."""
        command = [sys.executable, str(script), *arguments]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=2 * PROMPT
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def dpstream(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, list[str], str]]:
    """`dpstream propose` in this process: exit status, lines printed, and complaints."""

    def run(*arguments: str, stdin: str = "") -> tuple[Any, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["dpstream", "propose", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        for name, value in deployment.environment.items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        return ended.value.code, said.out.splitlines(), said.err

    return run


def trained_already(models: list[Path]) -> Callable[[Any, Train, Context], MemberTrained]:
    def train(resources: Any, command: Train, context: Context) -> MemberTrained:
        model = context.put("frozen.pb", models[command.member].read_bytes())
        rmse = Rmse(frames=1, energy=0.0, force=0.0, rms_force=1.0)
        return MemberTrained(
            **context.envelope(),
            version=command.version,
            member=command.member,
            steps=command.steps,
            model=model,
            frozen=model,
            compressed=False,
            checkpoint=model,
            lcurve=model,
            train=rmse,
        )

    return train


@pytest.fixture(scope="module")
def deployment(
    rabbit_node: RabbitNode, tmp_path_factory: pytest.TempPathFactory, methane_committee: list[Path]
) -> Iterator[Deployment]:
    rabbit_node.wipe()
    folder, stopping = tmp_path_factory.mktemp("deployment"), threading.Event()
    root = folder / "root"
    store = FolderStore(root)
    settings = RabbitSettings.model_validate({"url": rabbit_node.url})
    buses = [RabbitBus(settings) for _ in range(2)]
    spec = write_spec(folder, **ENDLESS)
    loaded = load_spec(spec)
    gathered, recipe = gather(loaded, folder), make_recipe(loaded.labels)
    event = submit(loaded, gathered, recipe, store, time.time())
    benches = [ExplorerResources(folder / "judge"), LabelerResources(folder / "label")]
    training: Any = {Train: trained_already(methane_committee)}
    crews: list[tuple[str, Any, Any]] = [
        ("train", training, None),
        ("judge", explorer.HANDLERS, benches[0]),
        ("screen", explorer.HANDLERS, ExplorerResources(folder / "screen")),
        ("explore", explorer.HANDLERS, ExplorerResources(folder / "explore")),
        ("label.tblite", labeler.HANDLERS, benches[1]),
    ]
    coordinator = Coordinator(buses[0], store)
    threads = [threading.Thread(target=coordinator.run, args=(stopping,))]
    for queue, handlers, resources in crews:
        scratch = folder / f"scratch-{queue}"
        scratch.mkdir()
        worker: Worker[Any] = Worker(
            queue, buses[1], store, queue, handlers, resources, scratch, stopping=stopping
        )
        threads.append(threading.Thread(target=worker.run))
    made: list[Generator] = []
    try:
        for thread in threads:
            thread.start()
        buses[1].publish([Outgoing(encode(event), topic=topic_of(event))])
        yield Deployment(rabbit_node, root, made)
    finally:
        stopping.set()
        for thread in threads:
            thread.join(timeout=30)
        for generator in made:
            generator.close()
        for _, _, resources in crews:
            if resources is not None:
                resources.close()
        for bus in buses:
            bus.close()


def rattled(count: int, seed: int) -> list[Atoms]:
    frames = [molecule("CH4") for _ in range(count)]
    for number, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=1000 * seed + number)
    return frames


def heard(generator: Generator, correlation: str, count: int) -> dict[int, list[Verdict]]:
    """All verdicts on `count` frames, to the last of each."""
    words: dict[int, list[Verdict]] = {n: [] for n in range(count)}
    waiting = set(range(count))
    for verdict in generator.verdicts(timeout=PROMPT):
        if verdict.correlation == correlation:
            words[verdict.index].append(verdict)
            if verdict.verdict != "candidate":
                waiting.discard(verdict.index)
        if not waiting:
            return words
    raise AssertionError(f"no last word on {waiting}: {words}")


def kinds(words: dict[int, list[Verdict]]) -> list[list[str]]:
    return [[verdict.verdict for verdict in said] for said in words.values()]


def test_offered_frames_are_judged_labelled_and_told_of(deployment: Deployment) -> None:
    generator = deployment.generator("ga")
    good = rattled(2, seed=1)
    overlapping, alien = molecule("CH4"), molecule("H2O")
    overlapping.positions[1] = overlapping.positions[0] + 0.05
    many = Atoms("H9", np.arange(27).reshape(9, 3))
    offered = [*good, overlapping, alien, good[0], many]
    words = heard(generator, generator.propose(offered), len(offered))
    assert kinds(words) == [
        ["candidate", "labelled"],
        ["candidate", "labelled"],
        ["refused"],
        ["refused"],
        ["duplicate"],
        ["refused"],
    ]
    assert words[2][0].reason == "C-H too close: 0.0866 Å, at least 0.535 Å"
    assert words[3][0].reason == "element 'O' is not in type_map (C, H)"
    assert words[4][0].reason == "identical to frame 0 of the proposal"
    assert words[5][0].reason == "9 atoms; allowed: 1 to 8"
    candidate, labelled = words[0]
    assert candidate.version >= 1
    assert candidate.deviation is not None
    assert 1e-6 < candidate.deviation < 100
    assert labelled.key == frame_key(canonical(from_ase(good[0])).frame)
    known = frames_of(deployment.state)[str(labelled.key)]
    assert (known.status, known.purpose, known.stage) == ("labelled", "train", -1)
    assert known.label is not None
    _, label, _ = decode_labelled(FolderStore(deployment.root).get(known.label))
    assert labelled.energy == label.energy


BOMB = b"1000000000000000\ncomment\n"


def recorded(deployment: Deployment, kind: type[m.Message]) -> list[Any]:
    messages = read_messages(FolderStore(deployment.root), "endless")
    return [message for message in messages if isinstance(message, kind)]


@pytest.mark.soak
def test_no_selection_waits_for_bombs(deployment: Deployment) -> None:
    """Each of the files costs its parser all its time; meanwhile the campaign goes on."""
    store, count = FolderStore(deployment.root), 2
    while not recorded(deployment, m.CandidatesSelected):
        time.sleep(0.5)
    with closing(RabbitBus(RabbitSettings.model_validate({"url": deployment.node.url}))) as bus:
        for number in range(count):
            data = BOMB + b"\n" * number
            uri = campaign_uri("endless", "proposals", f"bomb-{number}.extxyz")
            assert store.create(uri, data)
            offer = m.StructuresProposed(
                id=f"bomb-{number}",
                campaign="endless",
                time=time.time(),
                generator="bomber",
                correlation=f"bomb-{number}",
                batch=Ref.to(uri, data),
                count=1,
            )
            bus.publish([Outgoing(encode(offer), topic=topic_of(offer))])
    refusals: list[str] = []
    selections: list[int] = []
    while len(refusals) < count:
        time.sleep(1.0)
        screened = recorded(deployment, m.StructuresScreened)
        refusals = [event.refused for event in screened if event.refused]
        selections.append(len(recorded(deployment, m.CandidatesSelected)))
    assert set(refusals) == {"unreadable: takes more than 5.0216 s of processor time"}
    assert selections[-1] > selections[0]


def test_by_reference_and_straight_to_labeling(deployment: Deployment) -> None:
    """More frames than a message holds: they go through the store, in two parts."""
    generator = deployment.generator("bulk")
    frames = rattled(105, seed=2)
    for atoms in frames:
        atoms.positions += 1 / 3  # long numbers
    correlation = generator.propose(frames, label=True, priority=1)
    words = heard(generator, correlation, len(frames))
    assert kinds(words) == [["candidate", "labelled"]] * 105
    assert {said[0].version for said in words.values()} == {0}
    state = deployment.state
    mine = [f for f in frames_of(state).values() if f.origin.startswith("generator:dpstream/bulk/")]
    assert {frame.purpose for frame in mine} == {"proposed"}
    assert len(mine) == state.proposals.labels >= 105
    again = heard(generator, generator.propose(frames[:2]), 2)
    assert kinds(again) == [["duplicate"]] * 2
    assert again[0][0].reason == "already in the campaign: labelled"


def test_the_newest_committee_is_there_to_be_used(
    deployment: Deployment, tmp_path: Path, methane_committee: list[Path]
) -> None:
    generator = deployment.generator("ga")
    models = generator.models(tmp_path)
    assert [m.read_bytes() for m in models] == [m.read_bytes() for m in methane_committee]
    assert generator.models(tmp_path) == models


def test_the_documented_lines_of_pika_work(deployment: Deployment, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(import json.*?)```", DOCS.read_text(), re.S)
    assert len(code.strip().splitlines()) <= 20
    script = tmp_path / "by_hand.py"
    script.write_text(code.replace('"methane"', '"endless"'))
    first, last = deployment.run(script).splitlines()
    assert "'verdict': 'candidate'" in first
    assert "'verdict': 'labelled'" in last


def test_the_command_prints_the_verdicts(dpstream: Any, tmp_path: Path) -> None:
    write(tmp_path / "some.extxyz", rattled(2, seed=3), format="extxyz")
    write(tmp_path / "one.vasp", Atoms("H2", [[0, 0, 0], [0, 0, 0.9]], cell=[6] * 3, pbc=True))
    files = [str(tmp_path / name) for name in ("some.extxyz", "one.vasp")]
    status, lines, errors = dpstream(*files, "--campaign", "endless", "--label", "--follow")
    assert status in (0, None), errors
    said, header, *rows = (line for line in lines if not line.startswith("2"))
    assert said.startswith("proposed 3 frames to endless as ")
    assert header.split()[:2] == ["frame", "verdict"]
    last = {row.split()[0]: row.split()[1] for row in rows}
    assert last == {"0": "labelled", "1": "labelled", "2": "labelled"}


def test_a_stream_is_offered_frame_by_frame(
    deployment: Deployment, dpstream: Any, tmp_path: Path
) -> None:
    write(tmp_path / "s.extxyz", rattled(2, seed=4), format="extxyz")
    stream = (tmp_path / "s.extxyz").read_text()
    how = ("--campaign", "endless", "--generator", "pipe", "--wait")
    status, lines, errors = dpstream("-", *how, stdin=stream)
    assert status in (0, None), errors
    rows = [line.split()[:2] for line in lines if line.startswith("    ")]
    assert sorted(rows) == [
        ["0", "candidate"],
        ["0", "labelled"],
        ["1", "candidate"],
        ["1", "labelled"],
    ]
    origins = {frame.origin.rsplit("/", 1)[0] for frame in frames_of(deployment.state).values()}
    assert sum(origin.startswith("generator:dpstream/pipe/") for origin in origins) == 1


def test_the_example_runs(deployment: Deployment) -> None:
    printed = deployment.run(EXAMPLE, "--campaign", "endless", "--frames", "4", "--seed", "9")
    header, *rows = printed.splitlines()
    assert header.split()[0] == "frame"
    assert {row.split()[0] for row in rows} == {"0", "1", "2", "3"}
    assert "labelled" in printed


def test_the_generator_of_the_manifests_runs(deployment: Deployment) -> None:
    rows = deployment.run(COMPONENT, "endless").splitlines()
    assert {row.split()[0] for row in rows} == {str(index) for index in range(8)}


def test_bad_input_is_one_line(dpstream: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.cif").write_text("nonsense")
    write(tmp_path / "good.xyz", molecule("CH4"))
    good = str(tmp_path / "good.xyz")
    for arguments, why in [
        ([str(tmp_path / "bad.cif"), "--campaign", "endless"], "bad.cif: cannot be read"),
        ([str(tmp_path / "no.xyz"), "--campaign", "endless"], "no.xyz: no such file"),
        ([good, "--campaign", "other"], "--campaign: 'other': no such campaign in the store"),
        ([good, "--campaign", "../x"], "--campaign: '../x': use at most 63 lower-case letters"),
        (
            [good, "--campaign", "endless", "--generator", "A"],
            "--generator: 'A': use at most 63 lower-case letters",
        ),
        (["-", "--campaign", "endless"], "-: frame 1: 'x' is not a number of atoms"),
        (
            ["--campaign", "endless"],
            "give FILE arguments (- for standard input) or --watch DIR, not both",
        ),
    ]:
        status, _, errors = dpstream(*arguments, stdin="x\n")
        assert (status, why in errors) == (2, True), errors
        assert len([line for line in errors.splitlines() if line.startswith("dpstream: ")]) == 1


def poscars(*frames: Atoms) -> str:
    blocks = []
    for number, atoms in enumerate(frames, start=1):
        cell = "\n".join(" ".join(f"{x:.9f}" for x in row) for row in atoms.cell[:])
        rows = "\n".join(" ".join(f"{x:.9f}" for x in row) for row in atoms.positions)
        blocks.append(f"EA{number}\n1.0\n{cell}\nC H\n1 4\nCartesian\n{rows}\n")
    return "".join(blocks)


def boxed(seed: int) -> Atoms:
    (atoms,) = rattled(1, seed)
    atoms.set_cell([8.0, 9.0, 10.0])
    atoms.pbc = True
    return atoms


def test_a_watched_folder_is_proposed_once(deployment: Deployment, tmp_path: Path) -> None:
    said: list[Any] = []
    generator = deployment.generator("uspex")
    watch = WatchedFolder(tmp_path, generator, said.append, label=True, priority=0)
    first, second, third = boxed(5), boxed(6), boxed(7)
    (tmp_path / "sub").mkdir()
    (tmp_path / "gatheredPOSCARS").write_text(poscars(first, second))
    (tmp_path / "sub" / "POSCAR_1").write_text(poscars(first))
    (tmp_path / "broken.cif").write_text("nonsense")
    assert watch.look() == 0  # still being written, for all that is known
    assert watch.look() == 2
    assert [line for line in said if "skipped: " in line and "broken.cif" in line] == [said[0]]
    assert watch.look() == 0
    (tmp_path / "gatheredPOSCARS").write_text(poscars(first, second, third))
    assert [watch.look(), watch.look()] == [0, 1]
    restarted = WatchedFolder(tmp_path, generator, said.append, label=True, priority=0)
    assert [restarted.look(), restarted.look()] == [0, 0]
    done = {v.key for v in generator.verdicts(timeout=5) if v.verdict == "labelled"}
    assert done == {frame_key(canonical(from_ase(a)).frame) for a in (first, second, third)}
    with pytest.raises(SpecError, match="no such folder"):
        WatchedFolder(tmp_path / "none", generator, said.append)


def test_offers_do_not_show_in_the_verdicts_on_rounds(deployment: Deployment) -> None:
    state = deployment.state
    assert any(is_offered(frame.origin) for frame in frames_of(state).values())
    assert state.paused is None, state.paused
    current = state.exploration.round
    assert current is None or set(current.conditions) == {"methane 300 K"}
    assert state.exploration.stage.answered == sum(
        frame.stage == 0 and frame.status in ("labelled", "rejected")
        for frame in frames_of(state).values()
    )
