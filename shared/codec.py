"""Messages as bytes, and where they go: the union of all of them, told apart by their `type`."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from shared.messages import (
    Audit,
    AuditDone,
    CampaignCancelled,
    CampaignFinished,
    CampaignPaused,
    CampaignResumed,
    CampaignSubmitted,
    CandidatesSelected,
    CheckpointSaved,
    ChunkExplored,
    Command,
    Explore,
    FramesJudged,
    Judge,
    Label,
    LabelsDone,
    LeaseLapsed,
    ManifestFrozen,
    Measure,
    Measured,
    MemberTrained,
    Message,
    ModelsReady,
    Reference,
    ReferenceDone,
    RoundJudged,
    Screen,
    Select,
    StageEnded,
    StructuresJudged,
    StructuresProposed,
    StructuresScreened,
    TaskAbandoned,
    TaskCancelled,
    TaskClaimed,
    TaskFailed,
    TaskHeartbeat,
    TaskReleased,
    TaskRevoked,
    TasksRetried,
    Train,
    TrainingJudged,
    TrustChanged,
    Verified,
    Verify,
)

MAX_BODY = 64 * 1024
"""Bytes; larger things are objects in the store."""

AnyCommand = (
    Train | Explore | Judge | Screen | Select | Label | Reference | Audit | Measure | Verify
)
AnyResult = (
    MemberTrained
    | ChunkExplored
    | FramesJudged
    | StructuresScreened
    | CandidatesSelected
    | LabelsDone
    | ReferenceDone
    | AuditDone
    | Measured
    | Verified
)
AnyTaskEvent = (
    TaskClaimed
    | TaskHeartbeat
    | TaskReleased
    | TaskFailed
    | LeaseLapsed
    | TaskRevoked
    | CheckpointSaved
)
AnyDecision = (
    ModelsReady
    | ManifestFrozen
    | TrainingJudged
    | RoundJudged
    | StructuresJudged
    | TrustChanged
    | StageEnded
    | TaskCancelled
    | TaskAbandoned
    | CampaignPaused
    | CampaignResumed
    | CampaignCancelled
    | TasksRetried
    | CampaignFinished
)
AnyEvent = CampaignSubmitted | StructuresProposed | AnyTaskEvent | AnyResult | AnyDecision
AnyMessage = Annotated[AnyCommand | AnyEvent, Field(discriminator="type")]

ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyMessage)


def encode(message: Message) -> bytes:
    """Canonical JSON bytes of a message (ValueError above 64 KB)."""
    body = message.model_dump_json().encode()
    if len(body) > MAX_BODY:
        raise ValueError(f"{type(message).__name__} is {len(body)} bytes, above {MAX_BODY}")
    return body


def decode(body: bytes) -> Any:
    """The message in `body`; pydantic.ValidationError when it is none of ours."""
    return ADAPTER.validate_json(body)


def understood(body: bytes) -> Any:
    """The message in `body`; None for what is too long or none of ours."""
    if len(body) > MAX_BODY:
        return None
    try:
        return decode(body)
    except ValidationError:
        return None


def queue_of(command: Command) -> str:
    return command.QUEUE.format(getattr(command, "capability", ""))


def kind_of(message: Any) -> str:
    """The name of a message's kind, without the version: `models-ready`."""
    return str(message.type).partition("/")[0]


def topic_of(event: Message) -> str:
    return f"{event.campaign}.{kind_of(event)}"


def message_schema() -> str:
    """JSON Schema of everything that crosses the bus, as committed in `docs/`."""
    return json.dumps(ADAPTER.json_schema(), indent=1, sort_keys=True) + "\n"
