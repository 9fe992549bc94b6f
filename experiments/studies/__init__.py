"""Studies: many fits, scored and tabulated; each is run as `python -m experiments.studies.NAME`."""
