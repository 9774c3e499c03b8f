"""A structure generator that needs nothing of dpstream: methane with random displacements.

    DPSTREAM_BROKER=amqp://… python propose.py CAMPAIGN

Offers a few frames to the campaign, prints the committee's verdicts and ends. docs/generators.md
describes the message.
"""

import json
import os
import random
import sys
import time
import uuid

import pika

NAME = "displaced-methane"
FRAMES = 8
AMPLITUDE = 0.1
"""Å; standard deviation of a displacement."""
SECONDS = 300
"""Time limit for the verdicts."""
SPECIES = ["C", "H", "H", "H", "H"]
IDEAL = [
    [0, 0, 0],
    [0.63, 0.63, 0.63],
    [-0.63, -0.63, 0.63],
    [-0.63, 0.63, -0.63],
    [0.63, -0.63, -0.63],
]
"""Å."""


def frame():
    positions = [[x + random.gauss(0, AMPLITUDE) for x in atom] for atom in IDEAL]
    return {"species": SPECIES, "positions": positions}


def proposal(campaign):
    return {
        "type": "structures-proposed/1",
        "id": str(uuid.uuid4()),
        "campaign": campaign,
        "time": time.time(),
        "generator": NAME,
        "correlation": str(uuid.uuid4()),
        "mode": "screen",
        "frames": [frame() for _ in range(FRAMES)],
    }


def main(campaign):
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["DPSTREAM_BROKER"]))
    channel = connection.channel()
    channel.confirm_delivery()
    inbox = f"watch-{uuid.uuid4()}"
    channel.queue_declare(inbox, exclusive=True)
    channel.queue_bind(inbox, "dpstream.events", f"{campaign}.structures-judged")
    offered = proposal(campaign)
    channel.basic_publish(
        "dpstream.proposals", f"{campaign}.structures-proposed", json.dumps(offered)
    )
    waiting, end = set(range(FRAMES)), time.monotonic() + SECONDS
    while waiting and time.monotonic() < end:
        for _, _, body in channel.consume(inbox, auto_ack=True, inactivity_timeout=5):
            if body is None:
                break
            judged = json.loads(body)
            if judged["correlation"] == offered["correlation"]:
                if judged["refused"]:
                    sys.exit(f"refused: {judged['refused']}")
                for verdict in judged["verdicts"]:
                    print(verdict["index"], verdict["verdict"], verdict["reason"], flush=True)
                    waiting.discard(verdict["index"])
    connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
