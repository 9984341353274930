# The two main targets are audit and test; each installs what it needs first.

PYTHON ?= python3
VENV   ?= .venv
CASE   ?= datasets/ext4-office
POLICY ?= allocated
OUT    ?= audit-$(notdir $(patsubst %/,%,$(CASE)))
KERNEL ?= 6.1
NAME   ?= ext4-office
JOBS   ?= 2

PY = $(VENV)/bin/python

.PHONY: audit test lab lint regression record bench vm module module-lint soak crashes
.PHONY: debug-kernel faults picture clean help

help:
	@echo 'make audit [CASE=… POLICY=… OUT=…]  audit a case; leaves report.html, audit.json, chain/'
	@echo 'make test                           every test that this machine can run'
	@echo 'make lab                            JupyterLab on the notebooks'
	@echo 'make regression                     audit every case and compare with what is expected'
	@echo 'make record NAME=… OUT=…            record a scenario in a virtual machine'
	@echo 'make module KDIR=…                  build the kernel module'
	@echo 'make soak | crashes | faults        long tests of the module: switches, kills, a debug kernel'
	@echo 'make vm | bench | lint | module-lint | picture | clean'

audit: $(VENV)/.audit
	@$(PY) -m cbtlab audit '$(CASE)' --policy '$(POLICY)' --out '$(OUT)' --force

test: $(VENV)/.test
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTS)

vm: $(VENV)/.test
	$(PY) -m pytest -m vm

lab: $(VENV)/.lab
	$(VENV)/bin/jupyter lab notebooks

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

regression: $(VENV)/.audit
	$(PY) -m cbtlab.lab.regression

record: $(VENV)/.test
	$(PY) -m cbtlab lab run '$(NAME)' --kernel '$(KERNEL)' --to '$(OUT)'

bench: $(VENV)/.test
	for file in benchmarks/*.py; do $(PY) $$file || exit 1; done

picture: $(VENV)/.test
	$(PY) tools/picture.py

module:
	$(MAKE) -C kernel_module $(if $(KDIR),KDIR='$(KDIR)')

# The long forms of tests/vm; their last figures stand in docs/tracker.md.
soak: $(VENV)/.test
	$(PY) tests/vm/soak.py --to build/soak

crashes: $(VENV)/.test
	$(PY) tests/vm/crashes.py --to build/crashes

debug-kernel: $(VENV)/.test
	$(PY) -m cbtlab.lab.debug_kernel

faults: debug-kernel
	CBTLAB_DEBUG_KERNEL=1 CBTLAB_HOSTILE_CALLS=1000000 $(PY) -m pytest tests/vm/test_detectors.py tests/vm/test_faults.py

module-lint: $(VENV)/.test
	$(PY) tools/module_lint.py

# One environment; every target adds its own part to it.
$(VENV)/.audit $(VENV)/.test $(VENV)/.lab $(VENV)/.lint: $(VENV)/.%: pyproject.toml tools/setup
	@PYTHON='$(PYTHON)' VENV='$(VENV)' sh tools/setup $*
	@touch $@

clean:
	rm -rf $(VENV) audit-* build *.egg-info
