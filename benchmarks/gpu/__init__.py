"""What a GPU brings: trainings, judging and batched exploration, beside this machine's CPU."""
