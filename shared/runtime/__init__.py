"""The worker runtime: claims, tasks, child processes, retries, health checks."""
