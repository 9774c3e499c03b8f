"""Whole deployments: coordinators, workers, images and manifests."""
