# SPDX-License-Identifier: GPL-2.0-only
# Thin: every target sets the machine up (quick when nothing changed) and calls pyharness.
# Arguments for pyharness: make run ARGS='--kernel debian-6.1 FILE'

PYHARNESS := .venv/bin/pyharness
COMMANDS := run test matrix check abi bench build shell doctor

.PHONY: $(COMMANDS) setup clean lock

$(COMMANDS): setup
	@$(PYHARNESS) $@ $(ARGS)

setup:
	@scripts/setup

clean:
	@if [ -x $(PYHARNESS) ]; then $(PYHARNESS) clean $(ARGS); fi
	@rm -rf build

# Resolve the newest allowed versions again and record them with their hashes.
lock: setup
	@.venv/bin/python -m venv build/lock && build/lock/bin/pip install --quiet uv
	@{ head -n 2 requirements.lock && build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --upgrade --extra dev pyproject.toml; } > build/requirements.lock
	@mv build/requirements.lock requirements.lock
