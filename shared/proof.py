"""What shows that something about an attempt comes from the worker that has claimed it.

A worker makes a secret for each claim. The secret accompanies the events of the attempt. Its digest
is the *proof* beside a result in the store, and the claim names the digest of the proof. To publish
an event takes the secret, which does not follow from the proof.
"""

from __future__ import annotations

import hashlib
import hmac

from dpstream.shared.messages import TaskClaimed


def digest(text: str) -> str:
    """SHA-256: of a secret its proof, of a proof what the claim names."""
    return hashlib.sha256(text.encode()).hexdigest()


def proves(proof: str, claim: TaskClaimed) -> bool:
    """Whether `proof` is that of the claim's secret. Claims of release 0.1.0 have none, and any
    proof will do."""
    return claim.proof_sha256 is None or hmac.compare_digest(digest(proof), claim.proof_sha256)
