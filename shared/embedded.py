"""The embedded twins of the real adapters, for a machine without servers."""

from shared.folder_store import FolderStore
from shared.memory_bus import Broker, InProcessBus

__all__ = ["Broker", "FolderStore", "InProcessBus"]
