"""Which backends of DeePMD-kit are built for GPUs, as far as the names and versions of their
distributions tell. Whether one finds its GPU is known to its engine alone."""

from __future__ import annotations

from collections.abc import Mapping

JAX_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")
DISTRIBUTIONS = ("deepmd-kit", "tensorflow", "tensorflow-cpu", "torch", "jax", *JAX_PLUGINS)
"""What a trainer states the versions of."""
BACKENDS = frozenset({"tensorflow", "pytorch", "jax"})


def gpu_backends(programs: Mapping[str, str]) -> frozenset[str]:
    """The backends that a trainer with these programs may run on a GPU; all where it states none.
    `programs`: versions by distribution."""
    if not programs:
        return BACKENDS
    torch = programs.get("torch", "+cpu")
    built = {
        "tensorflow": "tensorflow" in programs and "tensorflow-cpu" not in programs,
        "pytorch": not torch.endswith("+cpu"),
        "jax": any(plugin in programs for plugin in JAX_PLUGINS),
    }
    return frozenset(name for name in BACKENDS if built[name])
