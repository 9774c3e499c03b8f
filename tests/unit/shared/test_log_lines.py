"""Log lines: their context, their form, and what must never be in one."""

from __future__ import annotations

import io
import logging
import threading
import time
from typing import Any

import pytest
import structlog

from dpstream.shared.logs import configure, logger, redacted
from tests.support.log_lines import log_lines

PASSWORD = "hunter/2"


def test_context_is_on_every_line_of_its_thread_only(log_stream: io.StringIO) -> None:
    configure(form="json", stream=log_stream, service="labeler")
    log = structlog.get_logger()

    def work(task: str, met: threading.Barrier) -> None:
        with structlog.contextvars.bound_contextvars(campaign="methane", task=task, attempt=1):
            met.wait(5)
            log.info("working")
            met.wait(5)

    met = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(task, met)) for task in ("t1", "t2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.info("idle")
    *working, idle = log_lines(log_stream)
    assert {line["task"] for line in working} == {"t1", "t2"}
    for line in working:
        assert (line["service"], line["campaign"], line["attempt"]) == ("labeler", "methane", 1)
        assert {"timestamp", "level", "event"} <= line.keys()
    assert idle["service"] == "labeler"
    assert "task" not in idle


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_is_ever_logged(log_stream: io.StringIO, form: Any) -> None:
    configure(form=form, secrets=[PASSWORD, "AKIA0", ""], stream=log_stream)
    log = structlog.get_logger()
    log.info(f"password {PASSWORD}", key="AKIA0", nested=[{"deep": ["AKIA0"]}], raw=b"AKIA0")
    log.warning("lost", reason="amqps://guest:other@host/vhost and s3://k:s@bucket")
    try:
        raise ValueError(f"cannot reach amqp://user:{PASSWORD}@host")
    except ValueError as error:
        log.exception("failed", reason=error)
    logging.getLogger("some.library").error("refused %s", "AKIA0", exc_info=True)
    said = log_stream.getvalue()
    assert said.count("***") >= 8
    for secret in (PASSWORD, "AKIA0", "other", "k:s"):
        assert secret not in said


def test_redaction_keeps_what_is_no_secret() -> None:
    for text in ("s3://bucket/prefix", "http://host:80/a", "user@host", "a // b: c"):
        assert redacted(text) == text
    assert redacted("amqp://u:p@h/v, amqps://x:y@z") == "amqp://***@h/v, amqps://***@z"


@pytest.mark.parametrize("text", ["a." * 10**5, "a://" * 10**5, "a://" + "b/" * 10**5, "@" * 10**5])
def test_redaction_takes_no_time_whatever_the_text(text: str) -> None:
    started = time.monotonic()
    redacted(text)
    assert time.monotonic() - started < 2.0


def test_levels_and_libraries(log_stream: io.StringIO) -> None:
    configure("warning", "json", stream=log_stream)
    structlog.get_logger().info("too little")
    logging.getLogger("some.library").info("too little")
    logging.getLogger("some.library").warning("retrying %d", 3)
    (line,) = log_lines(log_stream)
    assert (line["event"], line["library"], line["level"]) == (
        "retrying 3",
        "some.library",
        "warning",
    )


def test_a_line_is_one_line(log_stream: io.StringIO) -> None:
    configure(form="json", stream=log_stream)
    structlog.get_logger().info("two\nlines", value=float("inf"), text='"')
    assert log_stream.getvalue().count("\n") == 1


def test_until_configured_a_traceback_is_plain_and_on_standard_error(
    log_stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    structlog.reset_defaults()
    variable = "x" * 1000
    try:
        raise ValueError(len(variable))
    except ValueError:
        logger().exception("failed", task="t1")
    said = capsys.readouterr()
    assert said.out == ""
    assert "failed" in said.err
    assert said.err.splitlines()[-1] == "ValueError: 1000"
    assert len(said.err) < 500
