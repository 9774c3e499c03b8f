"""Offers structures to a campaign: a client for structure generators, and a watched folder."""
