"""The report of a run: its page, pictures, cautions, and the files for other programs."""
