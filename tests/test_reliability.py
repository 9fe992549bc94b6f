"""The table of faults that were injected; the injecting itself takes too long for a test."""

import pytest

from cryotrans_jax.io.files import InputError
from tests.tools import fuzz_kinds, reliability, reliability_folders, reliability_runs
from tests.tools.reliability import BEGIN, END, Row


def test_a_new_row_replaces_the_earlier_one_of_its_fault_and_no_other(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\n{END}\n\nMore.\n")
    for row in (Row("power fails", 3, 2, "a | b"), Row("files of noise", 9, 9, "told"), Row("power fails", 4, 4, "c")):
        reliability.write(page, row)
    before, table, after = page.read_text().partition(BEGIN)[0], *page.read_text().partition(BEGIN)[2].split(END)
    assert before == "# Title\n\n" and after == "\n\nMore.\n"
    assert table.strip().splitlines()[2:] == ["| power fails | 4 | 4 | c |", "| files of noise | 9 | 9 | told |"]
    assert "| a / b |" in reliability.line(Row("power fails", 3, 2, "a | b"))  # one cell still


def test_a_page_without_a_place_for_the_table_says_so(tmp_path):
    (tmp_path / "page.md").write_text("# Title\n")
    with pytest.raises(InputError, match="has no lines"):
        reliability.write(tmp_path / "page.md", Row("power fails", 1, 1, ""))


def test_results_are_the_same_where_all_their_files_are_there_with_the_same_bytes(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
        for name in (*reliability_runs.COMPARED_FILES, "metrics.json"):
            (folder / name).write_text(f"{name} of {folder.name if name == 'metrics.json' else 'all'}")
    assert reliability_runs.same_results(*folders[:2])  # which tells of its run
    (folders[1] / "loss.csv").write_text("other")
    (folders[2] / ".half.mrc").touch()
    assert not reliability_runs.same_results(folders[0], folders[1]) and not reliability_runs.same_results(
        folders[0], folders[2]
    )


def test_every_command_that_is_given_damaged_input_has_a_module():
    for name in (*fuzz_kinds.COMMANDS, *reliability_folders.READERS):
        assert callable(fuzz_kinds.module_of(name).main)
