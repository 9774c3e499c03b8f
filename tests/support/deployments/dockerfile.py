"""The images that deploy/Dockerfile defines, read for tests."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
SERVICES = ("coordinator", "trainer", "explorer", "labeler")


@dataclass(frozen=True)
class Stage:
    name: str
    base: str
    steps: tuple[tuple[str, str], ...]
    """Instruction and arguments, in order."""

    def all(self, instruction: str) -> list[str]:
        return [arguments for word, arguments in self.steps if word == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]

    def copied(self) -> list[tuple[list[str], str]]:
        """Sources in the build context and their destination."""
        copies = [shlex.split(each) for each in self.all("COPY") if not each.startswith("--from")]
        return [(words[:-1], words[-1]) for words in copies]

    def environment(self) -> dict[str, str]:
        words = [word for each in self.all("ENV") for word in shlex.split(each)]
        return {name: value for name, _, value in (word.partition("=") for word in words)}


@dataclass(frozen=True)
class Dockerfile:
    """The image of one service."""

    service: str
    stages: dict[str, Stage]
    """All of the file."""
    arguments: dict[str, str]
    """Defaults of all ARGs."""

    @property
    def build(self) -> Stage:
        """Where its packages are installed."""
        return self._whole(f"build-{self.service}")

    @property
    def runtime(self) -> Stage:
        """The image itself."""
        return self._whole(self.service)

    def _whole(self, name: str) -> Stage:
        """A stage with the steps of those that it is based on."""
        stage = self.stages[name]
        if stage.base not in self.stages:
            return stage
        below = self._whole(stage.base)
        return Stage(name, below.base, below.steps + stage.steps)

    def lock(self) -> Path:
        """The requirements that the image installs, with the ARGs' defaults."""
        named = [word for words, _ in self.build.copied() for word in words]
        file = next(w for w in named if "requirements/" in w and "build.txt" not in w)
        return ROOT / re.sub(r"\$\{(\w+)\}", lambda found: self.arguments[found[1]], file)

    def health(self) -> list[str]:
        return list(json.loads(self.runtime.last("HEALTHCHECK").partition("CMD ")[2]))

    def entrypoint(self) -> list[str]:
        return list(json.loads(self.runtime.last("ENTRYPOINT")))


def read(service: str) -> Dockerfile:
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line]
    stages: dict[str, Stage] = {}
    arguments: dict[str, str] = {}
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = Stage(name, base, ())
        elif stages:
            latest = list(stages.values())[-1]
            stages[latest.name] = Stage(latest.name, latest.base, (*latest.steps, (word, rest)))
    return Dockerfile(service, stages, arguments)


def pins(lock: Path) -> dict[str, str]:
    lines = [line for line in lock.read_text().splitlines() if line and line[0] != "#"]
    return {name: version for name, _, version in (line.partition("==") for line in lines)}
