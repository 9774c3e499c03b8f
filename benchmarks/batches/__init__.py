"""Does `training.batch_atoms: auto` reach the same errors with large batches as with small ones?"""
