"""What runs a worker: tasks, child processes, health, retries."""
