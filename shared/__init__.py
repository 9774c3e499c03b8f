"""Code that every service uses: messages, spec, atoms, the two ports with their adapters, and the
worker runtime. Imports nothing else of dpstream."""
