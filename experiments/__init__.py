"""Jobs for the command line: the only place with flags, paths, seeds and logging."""
