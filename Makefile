# make study [STUDY=quick]   set up and run a study: trainings, tables, plots
# make cluster STUDY=wmt14-en-de GPUS=8   the same as Slurm jobs with 8 GPUs each (profiles/slurm/config.yaml)
# make test                  set up and run all tests
# make soak [MINUTES=20]     kill a small study at random moments, at least 20 times, and compare its final files
# make bench [ONLY=decoding] [RUN=ID]   measure the speed and compare it with a plain loop and JoeyNMT: docs/speed.md
# make full-size             ten steps of the paper's 61.3M weights on CPU, interrupted and resumed; peak memory
# make lab                   set up and open JupyterLab on the notebooks
STUDY ?= quick
GPUS ?= 1
ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
BIN := $(ROOT)/.venv/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv; assert (3, 11) <= sys.version_info < (3, 14)' 2>/dev/null && echo $$p && break; done)
export PATH := $(BIN):$(PATH)
export JUPYTER_PREFER_ENV_PATH := 1
unexport PYTHONPATH
unexport PYTHONDONTWRITEBYTECODE # pip compiles nothing below: each process would compile all that it imports

.PHONY: study cluster test soak bench full-size lab notebooks lint clean
study: $(ROOT)/.venv/ready
	@cd $(ROOT) && python -m slt_lib data $(STUDY)
	@cd $(ROOT) && snakemake --profile profiles/default --config study=$(STUDY)
	@echo "Read $${SLT_FIGURES:-figures}/$(STUDY)/report.html; the notebooks are in $${SLT_BUILD:-build}/$(STUDY)/"

cluster: $(ROOT)/.venv/ready
	@cd $(ROOT) && python -m slt_lib data $(STUDY)
	@cd $(ROOT) && snakemake --profile profiles/slurm --config study=$(STUDY) gpus=$(GPUS)

test: $(ROOT)/.venv/ready
	@cd $(ROOT) && bash tests/run

soak: $(ROOT)/.venv/ready
	@cd $(ROOT) && bash tests/soak $(MINUTES)

# An interrupted call resumes after its last finished measure. BENCH_STEPS=100 BENCH_ROUNDS=1 BENCH_SECONDS=3: a quick run.
bench: $(ROOT)/.venv/ready
	@cd $(ROOT) && python -m benchmarks $(ONLY) $(if $(RUN),--run $(RUN))

full-size: $(ROOT)/.venv/ready
	@cd $(ROOT) && SLT_FULL_SIZE=1 python -m pytest -q -x -p no:xdist tests/test_full_size.py

lab: $(ROOT)/.venv/ready
	@cd $(ROOT) && jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --ServerApp.root_dir=$(ROOT) \
		notebooks/00_start.ipynb

# Execute the committed notebooks again on the quick study and remove what differs from run to run.
notebooks: $(ROOT)/.venv/ready
	@cd $(ROOT) && bash notebooks/execute

lint: $(ROOT)/.venv/ready
	@cd $(ROOT) && ruff check . && ruff format --check .

clean:
	rm -rf $(ROOT)/.venv $(ROOT)/build $(ROOT)/.snakemake

$(ROOT)/.venv/ready: $(ROOT)/requirements.txt $(ROOT)/pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed, with venv; set PYTHON=/path/to/python3.x"; exit 2; }
	$(PYTHON) -m venv $(ROOT)/.venv
	$(BIN)/python -m pip install --quiet --no-compile --requirement $(ROOT)/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable $(ROOT)
	@mkdir -p $(ROOT)/.venv/share/jupyter/lab/settings
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' \
		> $(ROOT)/.venv/share/jupyter/lab/settings/overrides.json  # JupyterLab asks nobody whether it may fetch news
	@touch $@
