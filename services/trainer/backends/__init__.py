"""One child process per backend of DeePMD-kit, which imports that backend alone.

Each module has the operations `train`, `freeze`, `compress`, `evaluate` and `describe`; the JAX
backend needs TensorFlow as well, because its members are converted to TensorFlow models.
"""
