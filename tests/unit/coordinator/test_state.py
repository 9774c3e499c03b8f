"""Changes of the state: a misspelt field or a wrong type is an error for the type checker, and an
unknown field one at run time too."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpstream.services.coordinator import state as state_module
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import LabelState, State
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec
from tests.support.campaigns.lossy_delivery import LossyDelivery, check_snapshot

RIGHT = "replace(LabelState(), pending=7)"
MISSPELT = "replace(LabelState(), pendign=7)"
WRONG_TYPE = 'replace(CommitteeState(), version="no int")'


@pytest.mark.slow
def test_the_type_checker_knows_the_fields(tmp_path: Path) -> None:
    imports = (
        "from dpstream.services.coordinator.records import replace",
        "from dpstream.services.coordinator.state import CommitteeState, LabelState",
    )
    code = tmp_path / "changes.py"
    code.write_text("\n".join((*imports, RIGHT, MISSPELT, WRONG_TYPE)))
    mypy = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", str(code)]
    found = subprocess.run(
        mypy, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False
    )
    errors = [line.partition(":")[2] for line in found.stdout.splitlines() if " error: " in line]
    misspelt, wrong_type = errors
    assert misspelt.startswith('4: error: Unexpected keyword argument "pendign"')
    assert wrong_type.startswith('5: error: Argument "version"')


def test_an_unknown_field_raises() -> None:
    changes: dict[str, Any] = {"pendign": 7}
    with pytest.raises(TypeError, match="LabelState has no field pendign"):
        replace(LabelState(), **changes)


def test_every_record_of_the_state_is_frozen() -> None:
    kinds = [kind for kind in vars(state_module).values() if isinstance(kind, type)]
    records = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    assert State in records
    for kind in records:
        record = object.__new__(kind)  # type: ignore[call-overload]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, dataclasses.fields(kind)[0].name, None)


def test_a_replaced_record_is_the_one_that_dataclasses_makes() -> None:
    state = LossyDelivery(CampaignSimulator(), spec()).run()
    assert replace(state, paused="why") == dataclasses.replace(state, paused="why")
    assert replace(state) == state
    frame = next(iter(state.labels.frames.values()))
    assert replace(frame, stage=7) == dataclasses.replace(frame, stage=7)
    assert frame.stage != 7


def test_a_snapshot_of_a_finished_campaign_reads_back() -> None:
    check_snapshot(LossyDelivery(CampaignSimulator(), spec()).run())
