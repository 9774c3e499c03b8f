"""The table of who may do what, held against what the services do; and the files made from it."""

from __future__ import annotations

import json
import re
import stat
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from typer.testing import CliRunner

import dpstream.services.explorer.handlers as explorer
import dpstream.services.labeler.handlers as labeler
import dpstream.services.trainer.handlers as trainer
from dpstream.commands.app import app
from dpstream.deploy.access_files import parse_deployment, parse_users, write_access
from dpstream.deploy.rights import DIALECTS, hashed, permission, policy, topic_permissions
from dpstream.services.coordinator.ledger.ledger import finished_uri
from dpstream.services.labeler.signatures import public_key
from dpstream.shared import messages as m
from dpstream.shared.access import (
    CLAIMS,
    INPUTS,
    LABELS,
    PARKED,
    PROBES,
    PROPOSALS,
    RESULTS,
    ROLES,
    Role,
)
from dpstream.shared.bus.topology import TOPOLOGY, declared
from dpstream.shared.codec import ADAPTER, kind_of
from dpstream.shared.errors import SpecError
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.store.s3 import PROBES as PROBED
from dpstream.shared.values import campaign_uri, label_uri

HANDLERS = {
    "trainer": trainer.HANDLERS,
    "explorer": explorer.HANDLERS,
    "labeler": labeler.HANDLERS,
}
WORKERS = tuple(HANDLERS)


def granted(role: str, *verbs: str) -> tuple[str, ...]:
    return tuple(pattern for verb in verbs for pattern in getattr(ROLES[role], verb))


def allows(patterns: tuple[str, ...], key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


# ----------------------------------------------------------------------- the table and the services


@pytest.mark.parametrize("service", WORKERS)
def test_a_worker_may_take_the_commands_it_handles_and_no_others(service: str) -> None:
    handled = {declared(command.QUEUE.format("code")) for command in HANDLERS[service]}
    assert {row.name for row in handled if row} == set(ROLES[service].consumes)


@pytest.mark.parametrize("service", WORKERS)
def test_a_worker_may_say_the_results_it_returns(service: str) -> None:
    for handler in HANDLERS[service].values():
        result = get_type_hints(handler)["return"]
        assert issubclass(result, m.Result)
        assert kind_of(result) in ROLES[service].publishes


def test_every_queue_is_read_by_one_role() -> None:
    consumed = [queue for role in ROLES.values() for queue in role.consumes]
    assert sorted(consumed) == sorted(row.name for row in TOPOLOGY)


def test_only_kinds_that_exist_are_named() -> None:
    kinds = {name.partition("/")[0] for name in ADAPTER.json_schema()["discriminator"]["mapping"]}
    named = {word for role in ROLES.values() for word in (*role.publishes, *role.subscribes)}
    assert named - {"*"} <= kinds


def test_what_each_role_may_publish() -> None:
    """Derived from the message classes; a wider grant has to be written down here as well."""
    assert set(ROLES["coordinator"].publishes) == {
        "models-ready",
        "stage-ended",
        "structures-judged",
        "campaign-paused",
        "campaign-finished",
    }
    assert set(ROLES["operator"].publishes) == {
        "campaign-submitted",
        "campaign-amended",
        "campaign-paused",
        "campaign-resumed",
        "campaign-cancelled",
        "tasks-retried",
    }
    assert ROLES["generator"].publishes == ("structures-proposed",)
    assert {*ROLES["trainer"].publishes} - {*ROLES["labeler"].publishes} == {
        "checkpoint-saved",
        "member-trained",
        "trainer-started",
    }


@pytest.mark.parametrize(
    ("kinds", "publishers"),
    [
        (
            (
                *(m.CampaignSubmitted, m.CampaignAmended, m.CampaignResumed),
                *(m.CampaignCancelled, m.TasksRetried),
            ),
            {"operator"},
        ),
        ((m.CampaignPaused,), {"operator", "coordinator"}),
        ((m.ModelsReady, m.StructuresJudged, m.StageEnded, m.CampaignFinished), {"coordinator"}),
        ((m.TaskRevoked, m.TaskCancelled, m.TaskAbandoned, m.LeaseLapsed), set[str]()),
        ((m.PlanChanged, m.AmendmentRefused), set[str]()),
    ],
)
def test_operators_and_the_coordinator_decide_about_campaigns_and_tasks(
    kinds: tuple[type[m.Event], ...], publishers: set[str]
) -> None:
    for kind in kinds:
        assert {name for name in ROLES if kind_of(kind) in ROLES[name].publishes} == publishers


def test_every_worker_may_announce_itself() -> None:
    assert {name for name, role in ROLES.items() if "worker-started" in role.publishes} == {
        *WORKERS
    }


def test_a_renamed_event_may_be_published_under_both_names() -> None:
    assert {"chunk-explored", "candidates-found"} <= set(ROLES["explorer"].publishes)


def test_results_are_said_by_one_role_each() -> None:
    said = [word for name in WORKERS for word in ROLES[name].publishes]
    for result in m.RESULTS:
        assert said.count(kind_of(result)) == 1, kind_of(result)
    assert not {kind_of(each) for each in m.COMMANDS} & set(said)


PLAN = campaign_uri("c", "plans", "2-0123abcd.json")


def test_keys_are_those_the_code_makes() -> None:
    """The patterns meet the functions that make keys."""
    for service in WORKERS:
        creates = granted(service, "creates")
        assert allows(creates, claim_uri("c", "t", 1))
        assert allows(creates, campaign_uri("c", "results", "t", 1, "x"))
        assert allows(creates, f"{PROBED}1")
        assert allows(granted(service, "deletes"), f"{PROBED}1")
        assert not allows(granted(service, "replaces"), claim_uri("c", "t", 1))
        assert allows(granted(service, "reads"), PLAN)
    assert allows(granted("labeler", "creates"), label_uri("recipe", "ab12"))
    assert allows(granted("coordinator", "creates"), finished_uri("c"))
    assert allows(granted("coordinator", "creates"), finished_uri("c", 2))
    assert allows(granted("coordinator", "creates"), PLAN)
    assert not allows(granted("operator", "creates"), PLAN)
    assert allows(granted("coordinator", "replaces"), claim_uri("c", "t", 1) + ".stop")


def test_only_probes_and_events_in_the_ledger_are_ever_deleted() -> None:
    assert set(ROLES["coordinator"].deletes) == {PARKED, PROBES}
    others = (role.deletes for name, role in ROLES.items() if name != "coordinator")
    assert {pattern for deletes in others for pattern in deletes} == {PROBES}


def test_generators_and_operators_write_only_what_they_bring() -> None:
    assert set(granted("generator", "creates", "replaces")) == {PROPOSALS, PROBES}
    assert INPUTS in granted("operator", "creates")
    assert not {CLAIMS, RESULTS, LABELS} & set(granted("operator", "creates", "replaces"))


# ----------------------------------------------------------------------------------- the documents


def may(role: Role, action: str, key: str, **context: bool) -> bool:
    """Whether the AWS policy allows `action` on `key`: evaluated as AWS does, for the conditions
    that are used. `if_none_match`: the request has the header."""
    place = parse_deployment("labeler", "bucket", "group", "dpstream", "")
    verdict = False
    for statement in policy(role, place, DIALECTS["aws"])["Statement"]:
        condition = statement.get("Condition", {})
        if "Bool" in condition:  # every request here is over TLS
            continue
        if "Null" in condition and not context.get("if_none_match"):
            continue
        named = any(fnmatchcase(f"s3:{action}", each) for each in statement["Action"])
        if named and any(
            fnmatchcase(f"arn:aws:s3:::bucket/{key}", r) for r in statement["Resource"]
        ):
            if statement["Effect"] == "Deny":
                return False
            verdict = True
    return verdict


def test_a_labeler_creates_labels_and_overwrites_none() -> None:
    role, key = ROLES["labeler"], "group/labels/r/ab/1.json"
    assert may(role, "PutObject", key, if_none_match=True)
    assert not may(role, "PutObject", key)
    assert not may(role, "DeleteObject", key)
    assert may(role, "GetObject", key)
    assert not may(role, "GetObject", "labels/r/ab/1.json")


@pytest.mark.parametrize("name", [*WORKERS, "generator", "operator"])
def test_a_wildcard_opens_no_way_into_the_ledger(name: str) -> None:
    for key in ("ledger/results/1", "epoch/claims/1", "ledger/1", "ledger/inputs/1"):
        assert not may(ROLES[name], "PutObject", f"group/campaigns/c/{key}", if_none_match=True)


OWNERS = {
    "results": set(WORKERS),
    "claims": {*WORKERS, "coordinator"},
    "inputs": {"operator"},
    "proposals": {"generator"},
    "manifests": {"coordinator"},
    "plans": {"coordinator"},
}


@pytest.mark.parametrize("name", [*WORKERS, "generator", "operator"])
@pytest.mark.parametrize("place", OWNERS)
def test_a_wildcard_opens_no_way_into_the_folder_of_others(name: str, place: str) -> None:
    for folder in OWNERS:
        key = f"group/campaigns/c/{place}/{folder}/x"
        granted = may(ROLES[name], "PutObject", key, if_none_match=True)
        assert not granted or name in OWNERS[place], key


@pytest.mark.parametrize("name", [*WORKERS, "generator", "operator"])
def test_only_the_coordinator_asks_a_worker_to_stop(name: str) -> None:
    key = f"group/{claim_uri('c', 't', 1)}"
    assert may(ROLES[name], "PutObject", key, if_none_match=True) == (name in WORKERS)
    assert not may(ROLES[name], "PutObject", f"{key}.stop", if_none_match=True)


def test_the_coordinator_replaces_nothing_but_stops() -> None:
    role = ROLES["coordinator"]
    assert may(role, "PutObject", "group/campaigns/c/claims/t/1.stop")
    assert not may(role, "PutObject", "group/campaigns/c/ledger/1")
    assert may(role, "PutObject", "group/campaigns/c/ledger/1", if_none_match=True)


@pytest.mark.parametrize("provider", ["aws", "alibaba"])
@pytest.mark.parametrize("name", ROLES)
def test_policies_name_no_other_bucket_demand_tls_and_fit(provider: str, name: str) -> None:
    place = parse_deployment(name, "bucket", "group", "dpstream", "")
    document = policy(ROLES[name], place, DIALECTS[provider])
    statements = document["Statement"]
    for statement in statements:
        for resource in statement["Resource"]:
            assert resource.removeprefix(DIALECTS[provider].resource).split("/")[0] == "bucket"
        if statement["Effect"] == "Allow":
            assert not any("*" in action for action in statement["Action"])
            keys = [r for r in statement["Resource"] if "/" in r]
            assert all("bucket/group/" in key for key in keys)
    assert any("SecureTransport" in json.dumps(each) for each in statements)
    assert len(json.dumps(document, separators=(",", ":"))) < 6144  # AWS's limit of one policy


def test_names_are_matched_whole_and_literally() -> None:
    found = permission(ROLES["labeler"], prefix="a.b-")
    assert re.match(found["read"], "a.b-label.tblite")
    assert not re.match(found["read"], "a.b-label.")
    assert not re.match(found["read"], "axb-label.tblite")
    assert not re.match(found["read"], "a.b-train")
    assert not re.match(found["write"], "dpstream.events")
    assert re.match(found["write"], "a.b-dpstream.events")
    assert not re.match(found["configure"], "a.b-label.tblite")


def test_topics_cannot_be_smuggled_in() -> None:
    among_events, write = (each["write"] for each in topic_permissions(ROLES["generator"]))
    assert not re.match(among_events, "methane.structures-proposed")
    assert re.match(write, "methane.structures-proposed")
    for topic in ("methane.labels-done", "a.b.structures-proposed", "structures-proposed"):
        assert not re.match(write, topic)


def test_passwords_are_hashed_as_rabbitmq_does() -> None:
    """The example of RabbitMQ's manual."""
    salt = bytes.fromhex("908dc60a")
    assert hashed("test12", salt) == "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"


# ------------------------------------------------------------------------------------- the command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["access", *arguments])


def test_secrets_are_private_kept_and_in_no_other_public_file(tmp_path: Path) -> None:
    assert run("--output", str(tmp_path)).exit_code == 0
    passwords = tmp_path / "passwords.env"
    first = passwords.read_text()
    for private in (passwords, tmp_path / "seaweedfs" / "s3.json"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    secrets = [line.partition("=")[2] for line in first.splitlines()[1:]]
    assert len(set(secrets)) == len(secrets)
    for file in tmp_path.rglob("*.json"):
        if file.name != "s3.json":
            assert not any(secret in file.read_text() for secret in secrets)
    assert run("--out", str(tmp_path)).exit_code == 0
    assert passwords.read_text() == first


def test_labelers_alone_have_signing_keys_and_earlier_keys_stay_valid(tmp_path: Path) -> None:
    users = "--users=coordinator,trainer,vasp=labeler,me=operator+labeler"
    run("--output", str(tmp_path), users)
    passwords = tmp_path / "passwords.env"
    keys = [line for line in passwords.read_text().splitlines() if "SIGNING_KEY" in line]
    assert [line.partition("=")[0] for line in keys] == ["ME_SIGNING_KEY", "VASP_SIGNING_KEY"]
    first = json.loads((tmp_path / "label-signers.json").read_text())["keys"]
    assert [first[public_key(line.partition("=")[2])] for line in keys] == ["me", "vasp"]
    passwords.write_text(passwords.read_text().replace(keys[1] + "\n", ""))
    run("--output", str(tmp_path), users)
    now = json.loads((tmp_path / "label-signers.json").read_text())["keys"]
    assert first.items() < now.items()
    assert sorted(now.values()) == ["me", "vasp", "vasp"]


def test_each_pool_of_a_fleet_file_has_a_user_of_its_own(tmp_path: Path) -> None:
    pools = {
        "gpu_a100": {"engine": "slurm", "serves": ["train"], "max": 1},
        "vasp-spot": {"engine": "slurm", "serves": ["label.vasp"], "max": 1},
        "explorer": {"engine": "process", "serves": ["explore", "judge"], "max": 1},
    }
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(yaml.safe_dump({"deployment": "lab", "pools": pools}))
    assert run("--output", str(tmp_path), "--fleet", str(fleet)).exit_code == 0
    document = json.loads((tmp_path / "rabbitmq" / "definitions.json").read_text())
    rights = {each.pop("user"): each for each in document["permissions"]}
    assert set(rights) == {*ROLES, "gpu_a100", "vasp-spot"}
    assert rights["gpu_a100"] == rights["trainer"]
    assert rights["vasp-spot"] == rights["labeler"]
    text = (tmp_path / "passwords.env").read_text()
    assert "\nGPU_A100_PASSWORD=" in text
    assert "\nVASP_SPOT_SIGNING_KEY=" in text


@pytest.mark.parametrize(
    "pools",
    [
        {"labeler": "train"},
        {"4090": "train"},
        {"admin": "train"},
        {"lab": "train"},
        {"gpu-a": "train", "gpu_a": "train"},
    ],
)
def test_a_pool_whose_name_no_user_may_have_is_named(tmp_path: Path, pools: dict[str, str]) -> None:
    given = {
        name: {"engine": "slurm", "serves": [queue], "max": 1} for name, queue in pools.items()
    }
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(yaml.safe_dump({"deployment": "lab", "pools": given}))
    users = f"--users={','.join(ROLES)},lab=labeler"
    done = run("--output", str(tmp_path / "out"), "--fleet", str(fleet), users)
    assert isinstance(done.exception, SpecError)
    name = list(pools)[-1]
    assert str(done.exception).startswith(f"--fleet: pools.{name}: the pool gives its name to a us")
    assert "--users" not in str(done.exception)


def test_another_user_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    place = parse_deployment("labeler", "dpstream", "", "dpstream", "")
    write_access(place, tmp_path)
    before = (tmp_path / "passwords.env").read_text().splitlines()
    more = parse_deployment("labeler,calypso=generator", "dpstream", "", "dpstream", "")
    write_access(more, tmp_path)
    after = (tmp_path / "passwords.env").read_text().splitlines()
    assert set(before) < set(after)
    assert any(line.startswith("CALYPSO_PASSWORD=") for line in after)


def test_a_user_may_have_several_roles() -> None:
    both = parse_users("me=operator+labeler")["me"]
    assert "label.*" in both.consumes
    assert {"campaign-submitted", "labels-done"} <= set(both.publishes)
    assert not both.commands
    assert parse_users("me=coordinator+trainer")["me"].commands


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--users", "labeller", "unknown role 'labeller'"),
        ("--users", "x=trainer,x=labeler", "unique names"),
        ("--users", "a-b=trainer,a_b=labeler", "unique names"),
        ("--users", "Admin=operator", "names of a-z"),
        ("--users", "admin=operator", "other than admin"),
        ("--users", "a=", "unknown role 'a'"),
        ("--bucket", "Big_Bucket", "'Big_Bucket'"),
        ("--prefix", "../up", "'../up'"),
        ("--vhost", "a b", "--vhost: 'a b'"),
        ("--broker-prefix", "a*", "--broker-prefix: 'a*'"),
    ],
)
def test_bad_options_are_told_before_anything_is_written(
    tmp_path: Path, option: str, value: str, expected: str
) -> None:
    done = run("--output", str(tmp_path / "out"), option, value)
    assert isinstance(done.exception, SpecError)
    assert expected in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = parse_deployment("labeler", "dpstream", "", "dpstream", "")
    with pytest.raises(SpecError, match=r"--output: .*file"):
        write_access(place, tmp_path / "file")
