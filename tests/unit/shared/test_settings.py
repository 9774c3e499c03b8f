"""What a process is told by its environment, and what it says of what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dpstream.services.explorer.settings import ExplorerSettings
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.shared.errors import SpecError
from dpstream.shared.settings import (
    Settings,
    WorkerSettings,
    bucket_and_prefix,
    misspelt_variables,
    read_settings,
    secrets_in,
    variables,
)
from dpstream.shared.spec import LabelSettings

GOOD = {
    "DPSTREAM_BROKER": "amqp://user:p%40ss@broker:5672/vhost",
    "DPSTREAM_STORE": "s3://bucket/some/prefix",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("DPSTREAM_")]:
        monkeypatch.delenv(name)
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def complaint(kind: type[Settings] = WorkerSettings) -> str:
    with pytest.raises(SpecError) as caught:
        read_settings(kind)
    assert caught.value.__cause__ is None, "its text would show the input"
    return str(caught.value)


def test_variables_become_settings(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.touch()
    environment.setenv("DPSTREAM_BROKER", "amqps://user:secret@broker")
    environment.setenv("DPSTREAM_BROKER_CA_FILE", str(authority))
    environment.setenv("DPSTREAM_HTTP_PORT", "8080")
    environment.setenv("DPSTREAM_STORE_REGION", "")
    settings = read_settings(WorkerSettings, max_tasks="3", name=None)
    assert settings.broker.get_secret_value() == "amqps://user:secret@broker"
    assert settings.broker_ca_file == authority
    assert (settings.http_port, settings.http_host) == (8080, "127.0.0.1")
    assert settings.store_region is None
    assert (settings.max_tasks, settings.idle_exit, settings.name) == (3, None, None)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("BROKER_QUEUE_TYPE", "fast", "'fast': must be 'quorum' or 'classic'"),
        ("HTTP_PORT", "70000", "'70000': must be less than or equal to 65535"),
        ("HTTP_PORT", "http", "'http': must be a valid integer"),
        ("STORE", "gs://bucket", "'gs://bucket': must be s3://bucket/prefix or the path"),
        ("STORE", "s3://Bucket", "bucket 'Bucket': must be 3 to 63 of a-z, 0-9, '.' and '-'"),
        ("STORE", "s3://bucket/a/../b", "must be s3://bucket/prefix or the path"),
        ("STORE_ADDRESSING", "host", "'host': must be 'auto', 'path' or 'virtual'"),
        ("STORE_CA_FILE", "/nowhere.pem", "'/nowhere.pem': no such file"),
        ("STORE_ENCRYPTION", "AES256\r\nx-evil: 1", "must match"),
        ("LOG_LEVEL", "loud", "'loud': must be 'debug', 'info', 'warning' or 'error'"),
        ("MAX_TASKS", "0", "'0': must be greater than or equal to 1"),
        ("NAME", "a b", "'a b': "),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    environment: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    environment.setenv(f"DPSTREAM_{name}", value)
    line = complaint()
    assert line.startswith(f"DPSTREAM_{name}: ")
    assert said in line
    assert "\n" not in line


def test_a_missing_variable_is_named(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("DPSTREAM_STORE")
    assert complaint() == "DPSTREAM_STORE: missing (object store: s3://bucket/prefix, or a folder)"
    environment.setenv("DPSTREAM_STORES", "/tmp/x")
    assert "misspelt as 'DPSTREAM_STORES'?" in complaint()


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@host",
        "amqp://user:hunter2@",
        "amqp://user:hun/hunter2@host",
        "amqp://user:hunter2@host:port",
        "amqp://user:hunter2@host/?heartbeat=1",
        "hunter2",
    ],
)
def test_a_bad_broker_url_is_refused_and_never_quoted(
    environment: pytest.MonkeyPatch, url: str
) -> None:
    environment.setenv("DPSTREAM_BROKER", url)
    line = complaint()
    assert line.startswith("DPSTREAM_BROKER: must be amqp")
    assert "hunter2" not in line


def test_settings_that_need_each_other(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    file.touch()
    environment.setenv("DPSTREAM_BROKER_CERT_FILE", str(file))
    assert "set both DPSTREAM_BROKER_CERT_FILE and DPSTREAM_BROKER_KEY_FILE, or" in complaint()
    environment.setenv("DPSTREAM_BROKER_KEY_FILE", str(file))
    assert "must be amqps://" in complaint()  # or the certificate would be sent nowhere
    environment.delenv("DPSTREAM_BROKER_CERT_FILE")
    environment.delenv("DPSTREAM_BROKER_KEY_FILE")
    environment.setenv("DPSTREAM_STORE_ACCESS_KEY", "hunter2")
    line = complaint()
    assert "set both DPSTREAM_STORE_ACCESS_KEY and DPSTREAM_STORE_SECRET_KEY, or" in line
    assert "hunter2" not in line


def test_secrets_are_in_no_repr_and_known_to_the_logs(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DPSTREAM_STORE_ACCESS_KEY", "AKIA0")
    environment.setenv("DPSTREAM_STORE_SECRET_KEY", "hunter2")
    settings = read_settings(WorkerSettings)
    for secret in ("p%40ss", "AKIA0", "hunter2"):
        assert secret not in repr(settings) + str(settings)
    assert {"p%40ss", "p@ss", "AKIA0", "hunter2", GOOD["DPSTREAM_BROKER"]} == set(
        secrets_in(settings)
    )


def test_buckets_and_folders() -> None:
    assert bucket_and_prefix("s3://bucket/a/b/") == ("bucket", "a/b")
    assert bucket_and_prefix("s3://bucket") == ("bucket", "")
    assert bucket_and_prefix("runs/store") is None


def test_a_misspelt_optional_variable_is_noticed(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DPSTREAM_HTTP_PROT", "1")
    environment.setenv("DPSTREAM_LABELER_CODES", "tblite")  # another service's
    found = list(misspelt_variables(WorkerSettings))
    assert found == [("DPSTREAM_HTTP_PROT", "DPSTREAM_HTTP_PORT")]


def test_every_variable_is_explained() -> None:
    for kind in (LabelerSettings, ExplorerSettings):
        told = dict(variables(kind))
        assert len(told) == len(kind.model_fields)
        assert all(len(text) > 8 for text in told.values())
    assert told["DPSTREAM_BROKER"].endswith("[required]")
    assert "(quorum | classic) [quorum]" in told["DPSTREAM_BROKER_QUEUE_TYPE"]


def test_the_services_own_lists(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DPSTREAM_EXPLORER_QUEUES", "judge, explore")
    assert read_settings(ExplorerSettings).explorer_queues == ("judge", "explore")
    environment.setenv("DPSTREAM_EXPLORER_QUEUES", "explore,jugde")
    said = "DPSTREAM_EXPLORER_QUEUES: 'jugde': must be 'explore', 'judge' or 'screen'"
    assert complaint(ExplorerSettings) == said
    assert {"tblite", "pyscf", "ase"} <= set(read_settings(LabelerSettings).labeler_codes)
    environment.setenv("DPSTREAM_LABELER_CODES", "tblite,pyscf,tblite")
    assert read_settings(LabelerSettings).queues == ("label.tblite", "label.pyscf")
    environment.setenv("DPSTREAM_LABELER_CLASS", "32-cores")
    queues = read_settings(LabelerSettings).queues
    assert queues == ("label.tblite-32-cores", "label.pyscf-32-cores")
    assert LabelSettings(code="pyscf", worker_class="32-cores").capability == "pyscf-32-cores"
    assert LabelSettings(code="pyscf").capability == "pyscf"
    environment.setenv("DPSTREAM_LABELER_CODES", "tblit")
    assert "did you mean 'tblite'?" in complaint(LabelerSettings)
    environment.setenv("DPSTREAM_LABELER_CODES", " , ")
    assert "DPSTREAM_LABELER_CODES" in complaint(LabelerSettings)
    environment.setenv("DPSTREAM_LABELER_CODES", "ase")
    environment.setenv("DPSTREAM_LABELER_CALCULATORS", "os.system('x')")
    assert "dotted name" in complaint(LabelerSettings)
