"""Access rights of a deployment, and a development cluster on this machine."""
