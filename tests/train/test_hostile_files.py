"""Names that would steer a terminal and files that are nested without end."""

import io
from functools import partial

import pytest
import torch

from spfde._names import printable
from spfde.cli.comparison import kept_run
from spfde.cli.terminal import Terminal
from spfde.kernels.dispatch.table_file import read as read_table
from spfde.report.run import _parse as report_json
from spfde.train import fit
from spfde.train.recipe.toml import read
from spfde.train.record import kept_threads
from spfde.train.run_dir import WriteError, append_line, holds_comparison
from spfde.train.stats import parse_lines


def test_control_characters_are_shown():
    assert printable("ö\n\tcat \U0001f600") == "ö\n\tcat \U0001f600"
    assert printable("\x1b[31m\x07\r\u202e\x9b\udcff") == "\\x1b[31m\\x07\\r\\u202e\\x9b\\udcff"


def test_a_console_keeps_its_styles_and_escapes_the_text():
    console = Terminal(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    console.print("a\x1b[2Jb", style="bold", markup=False, highlight=False)
    assert console.file.getvalue() == "\x1b[1ma\\x1b[2Jb\x1b[0m\n"


def test_nested_json_is_told_in_one_line(tmp_path):
    deep = "[" * 200_000
    (tmp_path / "run.json").write_text(deep)
    (tmp_path / "deep.toml").write_text("a = " + deep)
    for reading, where in (
        (kept_run, tmp_path),
        (partial(report_json, deep), "metrics.jsonl, line 1"),
        (read_table, tmp_path / "run.json"),
        (read, tmp_path / "deep.toml"),
    ):
        with pytest.raises(ValueError, match=r"^expected .*, try [^\n]*$"):
            reading(where)
    assert parse_lines(deep) == [] and not holds_comparison(tmp_path) and kept_threads(tmp_path) is None


def test_only_a_full_disk_is_told_to_be_emptied(tmp_path):
    with pytest.raises(WriteError, match="got No such file or directory; .*, try a directory that can be written"):
        append_line(tmp_path / "gone" / "metrics.jsonl", {})


def test_a_model_without_data_is_refused_with_what_helps(task):
    model, state = task.model().to("meta"), task.model().state_dict()
    recipe = task.recipe(method="dense", epochs=1)
    with pytest.raises(ValueError, match=r"on the meta device, try model\.load_state_dict\(state, assign=True\)"):
        task.fit(recipe, model)
    model.load_state_dict(state, assign=True)
    task.fit(recipe, model)


def test_a_run_goes_on_with_its_own_threads(task, tmp_path):
    own = torch.get_num_threads()
    task.fit(task.recipe(method="dense", epochs=1, threads=own + 1, out=str(tmp_path)))
    recipe = task.recipe(method="dense", epochs=1, out=str(tmp_path))
    done = fit(recipe, model=task.model(), train_set=task.train, test_set=task.test, resume=True)
    assert done.recipe.threads == own + 1 and torch.get_num_threads() == own
