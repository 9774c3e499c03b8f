"""Many trajectories in one batch: the engine `batched`, with TorchSim and PyTorch models."""
