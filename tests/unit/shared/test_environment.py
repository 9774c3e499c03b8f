"""What engines and labeling programs see of a worker's environment."""

from __future__ import annotations

import pytest

from dpstream.shared.environment import checked, passed_environment


def test_patterns_add_variables_and_never_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"SLURM_JWT", "DPSTREAM_BROKER", "AWS_SECRET_ACCESS_KEY"}
    for name in ("SLURM_JOB_ID", "PMI_RANK", *secrets):
        monkeypatch.setenv(name, "x")
    assert not passed_environment().keys() & {"SLURM_JOB_ID", "DPSTREAM_BROKER"}
    monkeypatch.setenv("DPSTREAM_PASS", "SLURM_*, PMI*,")
    passed = passed_environment()
    assert {"PATH", "SLURM_JOB_ID", "PMI_RANK"} <= passed.keys()
    assert not passed.keys() & secrets


@pytest.mark.parametrize("pattern", ["*", "AWS_*", "DPSTREAM_BROKER", "*KEY*"])
def test_a_pattern_that_matches_a_secret_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"matches the secret .*; give narrower patterns"):
        checked(("SLURM_*", pattern))
