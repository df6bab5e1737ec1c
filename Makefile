# The checks of .ci/run, in the environment at hand.
.PHONY: check
check:
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	python -m pytest -m "not slow"
