"""The sections of a campaign spec, each a frozen model with every key described; users of the spec
import them from `shared.spec`.

Units: eV, Å, ps, K, bar.
"""
