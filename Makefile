# make demo: install into .venv and play the demo model.   make test: all checks.   make clean: back to a fresh checkout.
# Both install the package plainly, not editably: that is what users have and what mypy reads. A stamp makes reruns quick.

BIN     := .venv/bin
PYTHON  ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
               $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
# folders too: a file that goes away touches only them
SOURCES := pyproject.toml README.md LICENSE py.typed $(wildcard *.py) \
           $(shell find bench compiler frontends runtime templates -name __pycache__ -prune -o -print)

# $(call debian,PACKAGES,WHY): install Debian packages where this may, else say what is missing and go on.
debian = if command -v apt-get >/dev/null && { [ "$$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then \
             as=$$([ "$$(id -u)" = 0 ] || echo sudo -n); \
             { $$as apt-get update -qq && $$as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1) >/dev/null; } \
                 || echo "$(1) could not be installed: $(2)"; \
         else echo "$(1) not installed, for this needs Debian or Ubuntu and root: $(2)"; fi

# $(call install,WHAT): without build isolation, so that a rerun fetches nothing; build/ could hold files that are gone by now.
PIP     := $(BIN)/pip install -q --disable-pip-version-check
install = rm -rf build && $(PIP) "setuptools>=77" && $(PIP) --no-build-isolation "$(1)" && rm -rf build && touch $@

.NOTPARALLEL:
.PHONY: demo test clean

demo: .venv/demo .venv/gpu
	$(BIN)/tilewright demo

test: .venv/test .venv/gpu .venv/browser .venv/node
	$(BIN)/ruff check .
	$(BIN)/mypy -p tilewright
	LP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal $(PYTEST)

.venv/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is needed; name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || { $(call debian,python3-venv,$(PYTHON) needs it); }
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) makes no virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }

.venv/demo: .venv/bin/python $(SOURCES)
	@echo "Installing Tilewright into .venv"
	@$(call install,.)

.venv/test: .venv/bin/python $(SOURCES)
	@echo "Installing Tilewright and its checks into .venv"
	@$(call install,.[test])

# The next two are made only once there is what they stand for, so that what is installed later is found.
HAS_GPU := $(BIN)/python -c 'from tilewright.runtime.adapter import adapters; \
               exit(all(a.backend.startswith("OpenGL") for a in adapters()))'
.venv/gpu:
	@$(HAS_GPU) || { $(call debian,mesa-vulkan-drivers libvulkan1,without a GPU driver numpy plays and it is slow); }
	@! $(HAS_GPU) || touch $@

HAS_BROWSER := PYTHONPATH=tests $(BIN)/python -c 'from tint import find_chromium; exit(not find_chromium())'
.venv/browser:
	@$(HAS_BROWSER) || { $(call debian,chromium,tests that need a browser are skipped); }
	@! $(HAS_BROWSER) || touch $@

# The web player's tests run it in Node over Dawn, which the npm package webgpu is, and in Chromium, which playwright-core drives; nothing of
# them becomes part of the repository.
NODE_PACKAGES := webgpu@0.6.2 playwright-core@1
.venv/node: | .venv/test
	@command -v npm >/dev/null || { $(call debian,nodejs npm,tests that need Node are skipped); }
	@! command -v npm >/dev/null || npm install --silent --no-save --no-package-lock --prefix $@.partial $(NODE_PACKAGES) && mv $@.partial $@ \
	    || { rm -rf $@.partial; echo "$(NODE_PACKAGES) could not be installed: tests that play packages in Node or in a page are skipped"; }

clean:
	rm -rf .venv build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
