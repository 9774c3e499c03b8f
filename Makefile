# `make demo` and `make test` work on a fresh machine and install what they need.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# PyTorch is tested where TensorFlow cannot be imported.
PYTORCH := .venv-pytorch
PYTORCH_TESTS := -m pytorch tests/integration/trainer/test_backends.py \
  tests/integration/shared/test_deep_pot.py tests/integration/explorer/test_exploration_engines.py \
  tests/integration/explorer/test_batched.py tests/integration/explorer/test_batched_physics.py \
  tests/integration/trainer/test_multitask.py \
  tests/e2e/test_dpa.py tests/e2e/test_pytorch.py
# TorchSim's barostats need Python 3.12; without it their tests are skipped.
PYTHON312 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python3.12) python3.12)
NPT := .venv-pytorch-3.12
NPT_TESTS := -m pytorch tests/integration/explorer/test_exploration_engines.py \
  tests/integration/explorer/test_batched.py tests/integration/explorer/test_batched_physics.py

# The tests start their own RabbitMQ nodes and their own Slurm, so no service has to run; bubblewrap
# confines children where the kernel has no Landlock.
RABBITMQ := /usr/lib/rabbitmq/bin/rabbitmq-server
SLURM := /usr/sbin/slurmctld
GRID_ENGINE := /usr/sbin/sge_qmaster
# Keep compiled bytecode even if the environment disables it: every test starts Python processes.
export PYTHONDONTWRITEBYTECODE :=
ROOT := $(if $(filter 0,$(shell id -u)),,sudo -n)

PYTHONS := 3.10 3.11 3.12 3.13

.PHONY: demo test check lint versions soak npt fleet-test k8s-test images images-test install servers \
  grid-engine codes builder schema clean

demo: $(STAMP)
	$(BIN)/dpstream run examples/methane/campaign.yaml

# Six workers on two cores: many tests wait for a server, a lease or a killed process.
test: $(STAMP) $(PYTORCH)/.installed servers codes
	$(BIN)/python -m pytest -n 6 --dist loadfile --no-loadscope-reorder -m "not pytorch" tests
	$(PYTORCH)/bin/python -m pytest -n 2 --dist loadfile $(PYTORCH_TESTS)

# What the services log is captured with their output: pytest's own handlers of log lines, set for every step of
# every test, only take time.
check: lint
	$(BIN)/python -m pytest -q -n 3 --dist worksteal -p no:logging -m "not server and not slow" tests/unit tests/contract

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Types under every supported Python; `lint` checks the syntax of the oldest one.
versions: $(STAMP)
	for version in $(PYTHONS); do $(BIN)/mypy --python-version $$version || exit 1; done

# The images' tests are among all tests.
soak: images $(PYTORCH)/.installed servers grid-engine codes
	DPSTREAM_SOAK=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not pytorch" tests
	DPSTREAM_SOAK=1 $(PYTORCH)/bin/python -m pytest -n 2 --dist loadfile $(PYTORCH_TESTS)
	if $(PYTHON312) --version >/dev/null 2>&1; then $(MAKE) npt; else \
	  echo "there is no $(PYTHON312): npt of the engine batched is not tested"; fi

npt: $(NPT)/.installed
	DPSTREAM_SOAK=1 $(NPT)/bin/python -m pytest -n 2 --dist loadfile $(NPT_TESTS) -k batched

images: $(STAMP) builder
	$(BIN)/python deploy/images.py

images-test: images servers codes
	DPSTREAM_SOAK=1 $(BIN)/python -m pytest tests/integration/deploy/test_images.py

FLEET := tests/unit/coordinator/fleet tests/contract/test_fleet_contract.py \
  tests/contract/test_kubernetes_fleet.py tests/integration/coordinator/test_fleet_pools.py \
  tests/e2e/chaos/test_fleet.py

# Fleet engines: processes, a real Slurm and a real Grid Engine, stand-ins for the commands of other
# batch systems, and a Kubernetes API server of the tests' own.
fleet-test: $(STAMP) servers grid-engine
	DPSTREAM_SOAK=1 $(BIN)/python -m pytest $(FLEET)

# The same on any cluster, and a campaign of a deployment from the manifests in k8s/, in namespaces that are
# removed again: make k8s-test KUBECONFIG=... [IMAGES=registry.example.org/lab]. IMAGES: where the cluster
# finds the images of `make images`, if not under their plain names.
k8s-test: $(STAMP)
	@test -n "$(KUBECONFIG)" || { echo "k8s-test: set KUBECONFIG=FILE, the access to a cluster"; exit 2; }
	DPSTREAM_TEST_KUBECONFIG=$(abspath $(KUBECONFIG)) DPSTREAM_TEST_IMAGES=$(IMAGES) \
	  $(BIN)/python -m pytest -s -k kubernetes tests/contract tests/e2e/test_kubernetes.py

schema: $(STAMP)
	$(BIN)/python -c "from dpstream.shared.codec import message_schema; print(message_schema(), end='')" > docs/messages.schema.json
	$(BIN)/python -c "from dpstream.shared.asyncapi import document; print(document(), end='')" > docs/asyncapi.json
	$(BIN)/python -c "from dpstream.dpgen.key_page import markdown; print(markdown(), end='')" > docs/dp-gen-keys.md

install: $(STAMP)

servers:
	@test -x $(RABBITMQ) && test -x $(SLURM) && command -v bwrap >/dev/null || { $(ROOT) apt-get \
	  update -qq && $(ROOT) apt-get install -y -qq --no-install-recommends \
	  -o DPkg::Lock::Timeout=300 rabbitmq-server slurm-wlm munge bubblewrap >/dev/null; } || \
	  echo "RabbitMQ, Slurm or bubblewrap cannot be installed: their tests are skipped"

grid-engine:
	@test -x $(GRID_ENGINE) || { $(ROOT) apt-get update -qq && $(ROOT) apt-get install -y -qq \
	  --no-install-recommends -o DPkg::Lock::Timeout=300 gridengine-master gridengine-exec \
	  gridengine-client >/dev/null; } || echo "Grid Engine cannot be installed: its tests are skipped"

codes:
	@command -v cp2k.psmp >/dev/null && command -v pw.x >/dev/null && command -v mpirun >/dev/null \
	  && command -v gmx >/dev/null || { \
	  $(ROOT) apt-get update -qq && $(ROOT) apt-get install -y -qq --no-install-recommends \
	  -o DPkg::Lock::Timeout=300 cp2k cp2k-data quantum-espresso quantum-espresso-data openmpi-bin \
	  gromacs >/dev/null; } || echo "CP2K, Quantum ESPRESSO or GROMACS cannot be installed: their tests are skipped"

# deploy/images.py takes the first of docker, podman and buildah that works.
builder:
	@docker images --quiet >/dev/null 2>&1 || command -v podman >/dev/null || { command -v buildah && \
	  command -v debootstrap; } >/dev/null || { $(ROOT) apt-get update -qq && $(ROOT) apt-get install \
	  -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 buildah debootstrap >/dev/null; } || \
	  echo "buildah cannot be installed: the tests of the images are skipped"

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(PYTORCH)/.installed: pyproject.toml
	$(PYTHON) -m venv $(PYTORCH)
	$(PYTORCH)/bin/pip install --quiet --disable-pip-version-check --editable '.[coordinator,labeler,pytorch,testing]'
	touch $@

$(NPT)/.installed: pyproject.toml
	$(PYTHON312) -m venv $(NPT)
	$(NPT)/bin/pip install --quiet --disable-pip-version-check --editable '.[coordinator,labeler,pytorch,testing]'
	touch $@

clean:
	rm -rf .venv $(PYTORCH) $(NPT) .mypy_cache .ruff_cache .pytest_cache .hypothesis
