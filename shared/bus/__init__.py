"""The message bus: queues, an in-process bus, RabbitMQ."""
