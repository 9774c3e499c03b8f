"""Which process runs each task, and which tasks each process runs.

Fleet engines report ended processes all the time. Looking for their tasks must not take longer
because more tasks are running.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass
class TaskProcesses:
    _of_task: dict[str, str | None] = field(default_factory=dict)
    _tasks_of: dict[str, set[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self._of_task)

    def __contains__(self, task: str) -> bool:
        """Whether it is known which process runs the task, if a fleet engine started any."""
        return task in self._of_task

    def __getitem__(self, task: str) -> str | None:
        """The process of a task; None if no fleet engine started it."""
        return self._of_task[task]

    def __setitem__(self, task: str, process: str | None) -> None:
        self.forget(task)
        self._of_task[task] = process
        if process is not None:
            self._tasks_of.setdefault(process, set()).add(task)

    def forget(self, task: str) -> None:
        process = self._of_task.pop(task, None)
        if process is None:
            return
        tasks = self._tasks_of[process]
        tasks.discard(task)
        if not tasks:
            del self._tasks_of[process]

    @property
    def names(self) -> frozenset[str]:
        """Of the processes that run a task."""
        return frozenset(self._tasks_of)

    def tasks_of(self, processes: Collection[str]) -> list[str]:
        """Ids of the tasks that any of these processes runs."""
        running = self._tasks_of.keys() & processes
        return [task for process in running for task in self._tasks_of[process]]
