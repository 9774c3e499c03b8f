"""Campaigns without engines, and what tests ask of them."""
