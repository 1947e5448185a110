# `make` lists the targets. Everything beyond Python 3.12, make, cmake and a C and C++ compiler is set up by the first of them.

SHELL := bash
python := .venv/bin/python

# The targets use what set-up installed, whatever ROS 2 installation or environment the calling shell has sourced, and
# talk to this machine alone: a demo must never command a robot that happens to be on the same network.
ifdef AMENT_PREFIX_PATH
unexport LD_LIBRARY_PATH
endif
unexport PYTHONPATH PYTHONHOME COLCON_PREFIX_PATH CMAKE_PREFIX_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
# Many processes are started, each of which would compile PyTorch's sources anew; with it the tests take twice as long.
unexport PYTHONDONTWRITEBYTECODE
export AMENT_PREFIX_PATH := $(CURDIR)/.venv
export RMW_IMPLEMENTATION := rmw_fastrtps_cpp
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST

.PHONY: help setup test test-kilted demo lint format lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## set up .venv, ROS 2 and cosmos3_msgs (the other targets do this too)
	@tools/setup.sh

test: setup  ## run the tests; ARGS='-k guard' passes options to pytest
	$(python) -m pytest -n 2 --dist loadfile $(ARGS)

test-kilted:  ## run the ROS tests on ROS 2 Kilted, in an environment of its own
	@tools/kilted.sh $(ARGS)

demo: setup  ## run the policy on the simulated robot; ARGS='--help' lists the options
	.venv/bin/cosmos3 demo $(ARGS)

lint: setup  ## check style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: setup  ## rewrite the sources in the project's style
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

lock: setup  ## resolve requirements/*.txt anew into requirements/constraints.txt
	@tools/lock.sh

clean:  ## remove everything that the targets made
	rm -rf .venv .build .pytest_cache .mypy_cache .ruff_cache .hypothesis demo_output *.egg-info
	rm -f {cosmos3_ros/guard,engine/observation}/kernels_*.{so,c}
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
