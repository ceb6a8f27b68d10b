# Two commands need nothing but Python 3.11 or newer:  make demo   make test
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STORE  ?= folder

# One thread a process unless the engine says otherwise: several processes with many threads each crawl.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo cluster loop test journeys check docs reference bench chaos scale peers format lock picture report-picture terminal-picture clean

demo: $(VENV)/installed  ## the main job on real photographs, end to end; STORE=s3 runs it on a real S3 server
ifeq ($(STORE),s3)
	$(BIN)/python -m infra.local_s3 build/demo/s3 $(BIN)/python -m jobs.demo --store s3://demo/results
	@echo "The server has stopped and kept its data; to look inside: $(BIN)/python -m infra.local_s3 build/demo/s3 $(BIN)/gnp ls s3://demo/results"
else
	$(BIN)/python -m jobs.demo
endif

test: check  ## every check, then every test in two processes, but for the longest
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder --durations 25 -m "not journey"

journeys: $(VENV)/installed  ## the longest tests: clusters, training, and losses in the midst of them
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder --durations 25 -m journey

check: docs  ## formatting, lint and types; the documentation and its links; the files of infra/
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m infra.check

docs: $(VENV)/installed  ## the site of docs/, in build/docs; a link that leads nowhere is an error
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs build/docs

reference: $(VENV)/installed  ## the pages of docs/ that are made of the program
	$(BIN)/python -m jobs.docs.reference

terminal-picture: $(VENV)/installed  ## docs/terminal.svg, the demo half way
	$(BIN)/python -m jobs.docs.terminal

chaos: $(VENV)/installed  ## the fault campaign: 200 faults and more, injected for real, in half an hour; as root, with faketime installed
	$(BIN)/python -m tests.chaos.campaign

cluster: $(VENV)/installed  ## the demo submitted to a Ray cluster of three nodes on this machine
	$(BIN)/python -m infra.local_cluster ray job submit -- $(abspath $(BIN))/python -m jobs.demo --store $(abspath build/cluster)

loop: $(VENV)/installed  ## attack, train, attack again, on digits: 9 minutes
	$(BIN)/python -m jobs.loop

scale: $(VENV)/installed  ## a million markers on a real S3 server, a 5 GB shard, 100,000 items: time, memory, requests
	$(BIN)/python -m tests.scale

bench: $(VENV)/installed  ## how fast: gradients beside other libraries', the pipeline, the engine, files, growth; a quarter of an hour
	$(BIN)/python -m tests.bench

peers: $(VENV)/installed  ## our attacks against torchattacks' and torchattack's, on the same model and images
	$(BIN)/python -m tests.peers

format: $(VENV)/installed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

report-picture:  ## docs/report.png, the top of the demo's page; wants chromium
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1400,1160 --screenshot=docs/report.png build/demo/report/index.html

picture: $(VENV)/installed  ## docs/picture.png, from photographs free of rights
	$(BIN)/python -m jobs.docs.picture

# The lock pins what pip resolved, but for CUDA's packages: which of those there are is the torch wheel's business.
lock: $(VENV)/installed
	$(BIN)/pip freeze --exclude-editable | grep -viE '^(cuda|nvidia|triton)' > requirements.lock

$(VENV)/installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build
