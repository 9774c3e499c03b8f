"""DP-GEN's machine file as pools of workers. dpdispatcher, which DP-GEN submits with, decides what
the keys mean: the options and lines that it writes are compared with ours."""

from __future__ import annotations

import importlib
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpstream.dpgen.key_table import read
from dpstream.dpgen.machines.machine import read_machine
from dpstream.dpgen.machines.pools import (
    Labels,
    Pool,
    fleet_text,
    read_bundle,
    read_pools,
    walltime,
)
from dpstream.services.coordinator.fleet.engines.schedulers.batch import BatchFleet
from dpstream.services.coordinator.fleet.engines.script import worker_script
from dpstream.services.coordinator.fleet.pools import PoolSettings, read_fleet, worker_variables
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.shared.errors import SpecError
from tests.support.command_line import run_command
from tests.support.dpgen import dpgen_methane

VASP = Labels("vasp", is_own=True)
DATA = os.environ.get("DPSTREAM_TEST_DATA")
FILES = sorted(
    path
    for folder in ("dpgen", "cases/machine-json-refused")
    for path in (Path(DATA, folder).rglob("machine*.json") if DATA else ())
)
POOLS = {
    "machine-ali-ehpc.json": 0,
    "machine-local.json": 3,
    "machine-lsf-slurm-cp2k.json": 2,
    "ch4/machine.json": 3,
    "dp2.x-lammps-gaussian/machine.json": 0,
    "methane/machine.json": 0,
    "machine-old.json": 3,
    "machine-stray.json": 1,
}
"""Pools of the files; the others are of PBS, LSF and Lebesgue, or have no batch_type."""


def part(machine: Mapping[str, Any] | None = None, **resources: Any) -> dict[str, Any]:
    return {
        "command": "mpirun -np 4 vasp_std",
        "machine": {"batch_type": "Slurm", "context_type": "LocalContext", **(machine or {})},
        "resources": {"group_size": 1, "cpu_per_node": 4, **resources},
    }


def ssh(**profile: Any) -> dict[str, Any]:
    return {
        "context_type": "SSHContext",
        "remote_root": "/home/me/dpgen",
        "remote_profile": {"hostname": "login1", "username": "me", **profile},
    }


def pools(labels: Labels = VASP, **parts: Any) -> list[Pool]:
    return read_pools(read_machine(parts)[0], labels)[0]


def labelers(machine: Mapping[str, Any] | None = None, **resources: Any) -> Pool:
    (pool,) = pools(fp=part(machine, **resources))
    return pool


def settings_of(pool: Pool) -> PoolSettings:
    return PoolSettings.model_validate(pool.settings)


# ----------------------------------------------------------------------- as dpdispatcher has it

LONG = {"-t": "--time", "-p": "--partition", "-A": "--account", "-q": "--qos", "-N": "--nodes"}
FLEET = {"--job-name", "--array", "--parsable", "--no-requeue", "--signal", "--output"}
"""What the fleet engine needs for itself: names and arrays by which launches are found, SIGTERM
before the end; a lost worker's task is issued again, not its job."""
PLACE = {"--chdir"}
"""dpdispatcher changes the folder in the shell that submits."""


def directives(words: Sequence[str]) -> dict[str, str]:
    """Options of sbatch by their long names; the last one counts."""
    found: dict[str, str] = {}
    left = list(words)
    while left:
        name, separator, value = left.pop(0).partition("=")
        if not separator and left and not left[0].startswith("-"):
            value = left.pop(0)
        found[LONG.get(name, name)] = value
    return {name: value for name, value in found.items() if name not in FLEET | PLACE}


@pytest.fixture(scope="module", autouse=True)
def _log_of_dpdispatcher(tmp_path_factory: pytest.TempPathFactory) -> None:
    """dpdispatcher opens its log in the working folder when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("dpdispatcher"))
        importlib.import_module("dpdispatcher")


def theirs(values: Mapping[str, Any], folder: Path) -> tuple[dict[str, str], list[str]]:
    """The directives and the lines before the command that dpdispatcher writes."""
    from dpdispatcher import Machine, Resources, Task
    from dpdispatcher.submission import Job

    connection = {
        "batch_type": values["machine"]["batch_type"],
        "context_type": "LocalContext",  # SSHContext would connect
        "local_root": str(folder),
        "remote_root": str(folder),
    }
    machine = Machine.load_from_dict(connection)
    machine.context.remote_root = str(folder)  # as a submission sets it
    resources = Resources.load_from_dict(dict(values["resources"]))
    job = Job([Task(command="true", task_work_path=".")], resources=resources, machine=machine)
    header = machine.gen_script_header(job) + "\n" + machine.gen_script_custom_flags_lines(job)
    rows = [line.removeprefix("#SBATCH") for line in header.splitlines()[1:] if "#SBATCH" in line]
    assert header.splitlines()[0] == "#!/bin/bash -l"
    lines = machine.gen_script_env(job).split("exit 1\n", 1)[1].splitlines()
    return directives([word for row in rows for word in shlex.split(row, comments=True)]), prepared(
        lines
    )


def ours(pool: Pool, folder: Path) -> tuple[dict[str, str], list[str]]:
    settings = settings_of(pool)
    options = BatchFleet("lab", {pool.name: settings}, folder).options(pool.name, 1, "a")
    first, *lines, last = worker_script(pool.name, settings).splitlines()
    assert first == "#!/bin/bash -l"
    assert last.startswith("exec ")
    return directives(options[1:]), prepared(lines)


def prepared(lines: Sequence[str]) -> list[str]:
    """The lines in one form. A worker ends if a module or file is missing, where dpdispatcher goes
    on. The variables of dpdispatcher and dpstream are their own."""
    found = []
    for line in lines:
        words = line.removesuffix(" || exit 2").strip().replace(". ", "source ", 1)
        several = words.split()[2:] if words.startswith(("module load", "module unload")) else []
        own = words.startswith(("export DPDISPATCHER_", "export DPSTREAM_"))
        if several:
            found += [" ".join([*words.split()[:2], module]) for module in several]
        elif words and not own:
            found.append(words)
    return found


CASES: dict[str, dict[str, Any]] = {
    "small": part(),
    "two nodes": part(number_node=2, cpu_per_node=32, queue_name="large"),
    "GPUs": part(gpu_per_node=2, queue_name="gpu"),
    "a kind of GPU": part(gpu_per_node=2, kwargs={"custom_gpu_line": "#SBATCH --gres=gpu:a100:2"}),
    "no partition": part(queue_name=""),
    "options": part(
        queue_name="cpu",
        custom_flags=[
            "#SBATCH -t 96:0:0",
            "#SBATCH --mem=32G",
            "#SBATCH -A chem --qos long  # of the group",
            "#SBATCH --exclusive",
            "#SBATCH --constraint=skylake",
            "#SBATCH --exclude node[1-3]",
        ],
    ),
    "options that replace keys": part(
        number_node=1,
        queue_name="cpu",
        custom_flags=["#SBATCH -p other", "#SBATCH --nodes 3", "#SBATCH --ntasks-per-node=8"],
    ),
    "memory of a whole node": part(custom_flags=["#SBATCH --mem=0", "#SBATCH --mem-per-cpu=2G"]),
    "what is run first": part(
        module_purge=True,
        module_unload_list=["gcc/5"],
        module_list=["intel/2023 mpi/2021", "vasp/6.4"],
        source_list=["/opt/vasp.env", "/opt/second.env"],
        envs={"MPI_TYPE": "a b", "LEVEL": 3, "LAST": [1, 2]},
        prepend_script=["ulimit -s unlimited", "echo $HOSTNAME && date"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_worker_gets_what_a_job_got(name: str, tmp_path: Path) -> None:
    values = CASES[name]
    (pool,) = pools(fp=values)
    (found, lines), (wanted, before) = ours(pool, tmp_path), theirs(values, tmp_path)
    if name == "memory of a whole node":
        assert found.pop("--mem") == "0"
        assert wanted.pop("--mem") == "0"
    if name == "what is run first":
        before.remove("export LAST=1")  # the last value counts
    if pool.settings.get("slurm", {}).get("nodes"):
        assert "DPSTREAM_SCRATCH" in " ".join(pool.notes), "the nodes share the files of a task"
    assert found == wanted
    assert lines == before


def test_files_with_arguments_are_read_before_the_other_lines(tmp_path: Path) -> None:
    """They cannot be told from one path with blanks, and so come after the variables."""
    values = part(source_list=["/opt/a.env", "/opt/activate deepmd"], prepend_script=["date"])
    (pool,) = pools(fp=values)
    assert ours(pool, tmp_path)[1] == theirs(values, tmp_path)[1]
    assert pool.settings["source"] == ["/opt/a.env"]
    assert pool.settings["prepend"] == ["source /opt/activate deepmd", "date"]


def test_a_worker_gets_its_share_of_a_job_with_several_tasks(tmp_path: Path) -> None:
    """A worker runs one task at a time: with the whole job, most of the cores would be idle."""
    values = part(
        cpu_per_node=32,
        gpu_per_node=4,
        para_deg=2,
        strategy={"if_cuda_multi_devices": True},
        custom_flags=["#SBATCH --mem=60G"],
    )
    (pool,) = pools(fp=values)
    found, wanted = ours(pool, tmp_path)[0], theirs(values, tmp_path)[0]
    assert int(found["--ntasks-per-node"]) * 8 == int(wanted["--ntasks-per-node"])
    assert (found["--gres"], wanted["--gres"]) == ("gpu:1", "gpu:4")
    assert (found["--mem"], wanted["--mem"]) == ("7680M", "60G")
    assert pool.notes == ("8 tasks shared a job; a worker has one and its share",)


def test_only_labelers_have_several_nodes(tmp_path: Path) -> None:
    """Their programs start MPI ranks; trainers and explorers are one process each."""
    found = pools(train=part(number_node=2), fp=part(number_node=2))
    assert [ours(pool, tmp_path)[0]["--nodes"] for pool in found] == ["1", "2"]
    assert found[0].notes == ("2 nodes: a trainer uses one",)
    with pytest.raises(ValueError, match=r"slurm.nodes: a trainer uses one node"):
        PoolSettings(engine="slurm", serves=("train",), max=1, slurm={"nodes": 2})
    threads = worker_variables("labelers", settings_of(found[1]), warm=False)["DPSTREAM_THREADS"]
    assert threads == "8", "{cores} of the labeler's command are all ranks"


FLAT = {
    "numb_node": "number_node",
    "numb_gpu": "gpu_per_node",
    "task_per_node": "cpu_per_node",
    "partition": "queue_name",
}


def as_dpdispatcher(resources: Mapping[str, Any]) -> dict[str, Any]:
    """The oldest keys in those of dpdispatcher, which does not read them. DP-GEN's own dispatcher
    wrote `-t` and `--mem=…G`."""
    rest = dict(resources)
    flags = [f"#SBATCH -t {rest.pop('time_limit')}"] if "time_limit" in rest else []
    flags += [f"#SBATCH --mem={rest.pop('mem_limit')}G"] if "mem_limit" in rest else []
    rest = {key: value for key, value in rest.items() if key not in ("exclude_list", "with_mpi")}
    return {**{FLAT.get(k, k): v for k, v in rest.items()}, "custom_flags": flags, "group_size": 1}


@pytest.mark.skipif(DATA is None, reason="DPSTREAM_TEST_DATA names no folder of recorded data")
def test_the_slurm_machines_of_real_files(tmp_path: Path) -> None:
    compared = 0
    for path in FILES:
        values = read(path)
        for pool in read_pools(read_machine(values)[0], VASP)[0]:
            if pool.settings["engine"] != "slurm":
                continue
            name = pool.machine.part
            flat = as_dpdispatcher(values.get(f"{name}_resources", {}))
            given = values.get(name) or {"machine": {"batch_type": "Slurm"}, "resources": flat}
            one = given[0] if isinstance(given, list) else given
            assert ours(pool, tmp_path) == theirs(one, tmp_path), (path, name)
            compared += 1
    assert compared == 6


# ---------------------------------------------------------------------------- what has no twin


def test_jobs_that_are_submitted_by_ssh_stay_so() -> None:
    machine = ssh(port=2222, password="hunter2", key_filename="/home/me/.ssh/hpc")
    pool = labelers(machine)
    assert settings_of(pool).slurm.submit_prefix == (
        *("ssh", "-p", "2222", "-i", "/home/me/.ssh/hpc", "me@login1"),
    )
    assert pool.settings["slurm"]["flags"] == ["--chdir=/home/me/dpgen"]
    assert "passwords are not copied: ssh needs a key, e.g. of ssh-agent" in pool.notes
    assert "hunter2" not in fleet_text("lab", [pool], "machine.json")
    assert labelers(ssh(port=22)).settings["slurm"]["submit_prefix"] == ["ssh", "me@login1"]
    with pytest.raises(SpecError, match=r"fp.machine: hostname, username: must be plain names"):
        labelers(ssh(hostname="-oProxyCommand=date", username=""))


def test_the_nodes_of_a_worker_share_the_files_of_its_tasks() -> None:
    pool = labelers(ssh(), number_node=2)
    assert pool.settings["prepend"] == ["export DPSTREAM_SCRATCH=/home/me/dpgen/$SLURM_JOB_ID"]


def test_secrets_are_left_out_and_named() -> None:
    pool = labelers(
        envs={"AWS_SECRET_ACCESS_KEY": "hunter2", "VASP_HOME": "/opt", "OMP_NUM_THREADS": 4},
        prepend_script=["export API_TOKEN=hunter2", "date"],
    )
    assert pool.settings["envs"].keys() == {"VASP_HOME", "DPSTREAM_LABELER_COMMANDS"}
    assert pool.settings["prepend"] == ["date"]
    assert [note.split(";")[0] for note in pool.notes] == [
        "envs: AWS_SECRET_ACCESS_KEY: a secret",
        "envs: OMP_NUM_THREADS: the worker sets it, to 1 under mpirun and srun",
        "prepend_script: API_TOKEN: a secret",
    ]
    with pytest.raises(
        ValueError, match="prepend: API_TOKEN: a secret; it belongs in a file under source"
    ):
        PoolSettings(engine="slurm", serves=("train",), max=1, prepend=("export API_TOKEN=x",))


def test_programs_see_the_variables_of_their_pool() -> None:
    """DP-GEN's programs had the whole environment of the job."""
    pool = labelers(envs={"VASP_HOME": "/opt"}, prepend_script=["export CP2K_DATA_DIR=/data"])
    passed = worker_variables("labelers", settings_of(pool), warm=False)["DPSTREAM_PASS"].split(",")
    assert {"VASP_HOME", "CP2K_DATA_DIR", "SLURM_*"} <= set(passed)
    assert not any(name.startswith("DPSTREAM_") for name in passed)


def test_files_in_a_home_folder_are_found_there(tmp_path: Path) -> None:
    here, there = labelers(source_list=["~/vasp.env"]), labelers(ssh(), source_list=["~/vasp.env"])
    assert ". ~/vasp.env || exit 2" in worker_script("labelers", settings_of(there))
    (tmp_path / "fleet.yaml").write_text(fleet_text("lab", [here], "machine.json"))
    (found,) = read_fleet(tmp_path / "fleet.yaml").pools.values()
    assert found.source == (Path.home() / "vasp.env",)


def test_what_the_fleet_engine_needs_is_left_out_and_named() -> None:
    pool = labelers(
        custom_flags=["#SBATCH -J mine", "#SBATCH --array=0-9", "#BSUB -W 12:00", "export A=1"],
        append_script=["date"],
    )
    assert "slurm" not in pool.settings
    assert pool.settings["prepend"] == ["export A=1"]
    assert pool.notes == (
        "custom_flags: -J: the fleet engine sets it",
        "custom_flags: --array: the fleet engine sets it",
        "custom_flags: '#BSUB -W 12:00': no option of sbatch",
        "append_script: nothing runs after a worker",
    )


@pytest.mark.parametrize(
    ("text", "seconds", "lifetime"),
    [
        ("96:0:0", 345600, "91h"),
        ("1-12", 129600, "34h"),
        ("90:00", 5400, "85m"),
        ("30", 1800, "28m"),
        ("2-0:30:0", 174600, "46h"),
        ("UNLIMITED", None, None),
    ],
)
def test_a_worker_ends_before_its_walltime(text: str, seconds: float, lifetime: str) -> None:
    assert walltime(text) == seconds
    pool = labelers(custom_flags=[f"#SBATCH --time={text}"])
    assert pool.settings.get("lifetime") == lifetime
    assert settings_of(pool).slurm.time_limit == text


@pytest.mark.parametrize(
    ("code", "command", "kept"),
    [
        ("vasp", "mpirun -np 4 vasp_std > log 2>&1", "mpirun -np 4 vasp_std"),
        ("vasp", "srun vasp_std ||:", "srun vasp_std"),
        ("cp2k", "mpirun -n 32 cp2k.popt -i input.inp", "mpirun -n 32 cp2k.popt"),
        ("qe", "mpirun pw.x -nk 2 < input", "mpirun pw.x -nk 2"),
        ("abacus", "ABACUS.mpi", "ABACUS.mpi"),
        ("gaussian", "g09 < input > output ||:", None),
        ("vasp", "ulimit -s unlimited && mpirun vasp_std", None),
    ],
)
def test_the_command_becomes_the_labelers(
    code: str, command: str, kept: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**part(), "command": command}
    (pool,) = pools(Labels(code, is_own=True), fp=values)
    given = pool.settings.get("envs", {}).get("DPSTREAM_LABELER_COMMANDS")
    if kept is None:
        assert given is None
        assert "not run by a shell" in pool.notes[0]
        return
    monkeypatch.setenv("DPSTREAM_BROKER", "amqp://x")
    monkeypatch.setenv("DPSTREAM_STORE", "/tmp")
    monkeypatch.setenv("DPSTREAM_LABELER_COMMANDS", given)
    assert LabelerSettings().labeler_commands == {code: kept}
    (other,) = pools(Labels("tblite", is_own=False), fp=values)
    assert "envs" not in other.settings, "--code: the command is that of another program"


def test_lists_of_machines_become_several_pools() -> None:
    found = pools(
        train=[part(queue_name="a"), part(queue_name="b"), part({"batch_type": "LSF"})],
        fp=part({"batch_type": "Shell"}),
    )
    assert [(pool.name, pool.machine.where) for pool in found] == [
        ("trainers", "train[0]"),
        ("trainers-2", "train[1]"),
        ("labelers", "fp"),
    ]
    assert [pool.settings["engine"] for pool in found] == ["slurm", "slurm", "process"]


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        ({"batch_type": "PBS"}, "the engine pbs runs the pool that you write;"),
        ({"batch_type": "SGE"}, "the engine sge runs the pool that you write;"),
        ({"batch_type": "Bohrium"}, "no fleet engine for Bohrium (the cloud service Bohrium,"),
        ({"batch_type": "DistributedShell"}, "for DistributedShell (applications of a Hadoop"),
        ({"batch_type": "Shell", **ssh()}, "starts workers on the coordinator's machine only"),
        ({"batch_type": ""}, "it has no batch_type"),
    ],
)
def test_machines_without_an_engine_are_named(machine: dict[str, Any], why: str) -> None:
    found, (line,) = read_pools(read_machine({"fp": part(machine)})[0], VASP)
    assert found == []
    assert line.startswith("fp: no pool: ")
    assert why in line
    assert line.endswith("start its workers yourself: python -m dpstream.services.labeler")


@pytest.mark.parametrize(
    ("resources", "bundle"),
    [
        ({"group_size": 1}, 1),
        ({"group_size": 50}, 50),
        ({"group_size": 50, "para_deg": 4}, 13),
        ({"group_size": 500}, 100),
        ({"group_size": 0}, None),
    ],
)
def test_a_label_task_has_as_many_frames_as_a_job_had_in_turn(
    resources: dict[str, int], bundle: int | None
) -> None:
    assert read_bundle(read_machine({"fp": part(**resources)})[0]) == bundle


def test_an_element_of_a_job_array_is_a_label_task() -> None:
    machine = {"batch_type": "SlurmJobArray"}
    values = part(machine, group_size=50, kwargs={"slurm_job_size": 5})
    assert read_bundle(read_machine({"fp": values})[0]) == 5
    assert read_bundle(read_machine({"fp": part(machine, group_size=50)})[0]) == 1


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"cpu_per_node": "many"}, "fp.resources.cpu_per_node: 'many': must be a whole number"),
        ({"envs": ["A"]}, "fp.resources.envs: ['A']: must be a mapping"),
        ({"module_list": ["a 'b"]}, "fp: No closing quotation"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(resources: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as refused:
        labelers(**resources)
    assert str(refused.value) == words


# -------------------------------------------------------------------------------- the commands

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Call:
    """The command line, without Slurm and ssh: its exit status and what it prints."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("PATH", str(tmp_path))

    def called(*words: object) -> tuple[int, str]:
        status, out, err = run_command(monkeypatch, capsys, *words)
        return status, out + err

    return called


@pytest.mark.slow
def test_import_writes_a_fleet_file_to_read(tmp_path: Path, call: Call) -> None:
    param = dpgen_methane.write_files(tmp_path, dpgen_methane.param())
    machine, fleet = tmp_path / "machine.json", tmp_path / "fleet.yaml"
    values = {
        "train": part({"batch_type": "Shell"}),
        "fp": [part(ssh(), group_size=3, module_list=["vasp"]), part({"batch_type": "LSF"})],
    }
    machine.write_text(json.dumps(values))
    words = ("import", param, machine, "--fleet", fleet, "-o", tmp_path / "campaign.yaml")
    status, printed = call(*words)
    assert status == 0, printed
    assert "the engine lsf runs the pool that you write; start its workers yourself" in printed
    assert "a label task computes 3 frames one after another" in printed
    assert f"wrote {fleet} with 2 pools; next: dpstream fleet check {fleet}" in printed
    assert yaml.safe_load((tmp_path / "campaign.yaml").read_text())["labels"]["bundle"] == 3
    text = fleet.read_text()
    assert "  # fp[0]: Slurm\n" in text
    assert "# command: [/path/to/python, -m, dpstream.services.labeler]" in text
    (tmp_path / "campaign.yaml").unlink()
    assert call(*words) == (
        2,
        f"dpstream: --fleet: {fleet}: already exists; give another file name\n",
    )
    status, printed = call("import", param, "--fleet", tmp_path / "x", "-o", tmp_path / "y")
    assert (status, printed) == (
        2,
        "dpstream: --fleet: give DP-GEN's machine file after the param file\n",
    )


@pytest.mark.skipif(DATA is None, reason="DPSTREAM_TEST_DATA names no folder of recorded data")
@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_machine_file_through_the_commands(path: Path, tmp_path: Path, call: Call) -> None:
    param = dpgen_methane.write_files(tmp_path, dpgen_methane.param())
    fleet, count = (
        tmp_path / "fleet.yaml",
        next(n for k, n in POOLS.items() if str(path).endswith(k)),
    )
    status, printed = call("import", param, path, "--fleet", fleet, "-o", tmp_path / "c.yaml")
    assert status == 0, printed
    assert printed.count(": no pool: ") == 3 - count
    assert "xxx" not in printed.partition("machine.json")[2].replace("39.xxx", "")
    if not count:
        assert f"no pool of workers; {fleet} is not written" in printed
        assert not fleet.exists()
        return
    found = read_fleet(fleet)
    assert len(found.pools) == count
    status, printed = call("fleet", "render", fleet)
    assert status == 0
    assert printed.count("exec ") == count
    status, printed = call("fleet", "check", fleet)
    for name, pool in found.pools.items():
        (row,) = (line for line in printed.splitlines() if line.split()[:1] == [name])
        missing = [str(source) for source in pool.source if not pool.batch.submit_prefix]
        problem = (
            "source: "
            if missing
            else "accepted"
            if pool.engine == "process"
            else "sbatch: [Errno 2]"
        )
        assert problem in row
    assert status == any(pool.engine == "slurm" or pool.source for pool in found.pools.values())


@pytest.mark.skipif(DATA is None, reason="DPSTREAM_TEST_DATA names no folder of recorded data")
def test_every_file_is_expected() -> None:
    assert len(FILES) == len(POOLS)


def test_the_example_of_the_page_is_what_import_writes() -> None:
    page = (Path(__file__).parents[3] / "docs" / "dp-gen.md").read_text()
    given = page.split("```json\n")[1].split("```")[0]
    machines, _ = read_machine(json.loads("{" + given + "}"))
    text = fleet_text("lab", read_pools(machines, VASP)[0], "machine.json")
    assert text.endswith("pools:\n" + page.split("```yaml\n")[1].split("```")[0])
    assert f"`labels.bundle: {read_bundle(machines)}`" in page
