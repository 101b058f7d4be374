# Every target sets the environment up first; that is a no-op when nothing changed.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTHON ?= python3
export PYTHON

.PHONY: help setup demo repro test check ablation benchmarks compile images kfp-local ui clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 \t/p' Makefile

setup:  ## make .venv with everything the project needs
	@scripts/setup.sh

# A model or guard that the gates refuse is a result of the demo, not a failure of it: the summary says which.
demo: setup  ## from public packages to a measured, registered model, promoted if it passes the gates, and a summary
	@started=$$(date +%s); \
	ANYMAL_GRAPH_RUN=demo-$$started dvc repro && \
	{ anymal promote models:/anymal-guard@candidate --guard --config params.yaml --decision reports/promotion_guard.json || [ $$? -eq 3 ]; } && \
	{ anymal promote models:/anymal@candidate --config params.yaml --decision reports/promotion.json || [ $$? -eq 3 ]; } && \
	python scripts/summary.py --started $$started

repro: setup  ## run what changed
	@ANYMAL_GRAPH_RUN=repro-$$(date +%s) dvc repro

ablation: setup  ## train the variants of an entry of ablations.yaml and compare them: make ablation NAME=lora
	python -m pipelines.ablate $(NAME)

benchmarks: setup  ## small files of each benchmark's official layout, made of the demo's own data, asked and scored; after make demo
	python -m scripts.benchmarks --model models/tuned --assets data/assets --shards data/shards --out reports/benchmarks

test: setup  ## linters, types, all tests
	ruff check .
	mypy
	pytest -n 2 --dist loadgroup -m "not slow"
	pytest -n 2 --dist loadgroup -m slow

check: setup  ## linters, types, import rules and the contract of the stages: under a minute
	ruff check .
	mypy
	pytest -q tests/test_contract.py tests/test_architecture.py

compile: setup  ## Kubeflow's intermediate representation into dist/
	python -m pipelines.compile dist

images: setup  ## build the container images: make images [TORCH=cuda] [BASE=IMAGE] [PUSH=REGISTRY/FOLDER]
	@python scripts/images.py $(if $(TORCH),--torch $(TORCH)) $(if $(BASE),--base $(BASE)) $(if $(PUSH),--push $(PUSH))

ARGS ?= --reduced
kfp-local: images  ## the graph as a Kubeflow pipeline in containers here, with little data; make kfp-local ARGS= takes all of it
	@eval "$$(scripts/engine.sh start)" && ANYMAL_IMAGES=dist/images.yaml python -m pipelines.local $(ARGS)

ui: setup  ## MLflow on this machine only: http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true \
	mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000 --workers 1

clean:  ## remove compiled and cached files; data, models and results stay
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache
