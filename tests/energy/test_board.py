"""The facts of boards, from recorded file trees."""

import pytest
from energy.boards import AGX_ORIN, LAPTOP, ORIN_NANO, THOR, VIRTUAL, planted

from spfde.energy.board import board_of, l4t_release, power_mode


@pytest.mark.parametrize(
    ("files", "model", "l4t", "mode", "locked"),
    [
        (ORIN_NANO, "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "36.4.3", "15W", True),
        (AGX_ORIN, "NVIDIA Jetson AGX Orin Developer Kit", "36.4.3", "MODE_30W", False),
        (THOR, "NVIDIA Jetson AGX Thor Developer Kit", "39.2.1", "MAXN", False),
        (LAPTOP, "LENOVO 20XWCTO1WW", "", "balanced", None),
        (VIRTUAL, "Some CPU", "", "", None),
    ],
    ids=["orin nano", "agx orin", "thor", "laptop", "virtual machine"],
)
def test_what_a_machine_is(files, model, l4t, mode, locked, tmp_path):
    board = board_of(planted(files, tmp_path), cpu="Some CPU")
    assert (board.model, board.l4t, board.power_mode, board.clocks_locked) == (model, l4t, mode, locked)
    assert board.memory == 7802140 * 1024
    assert board.available == 5123456 * 1024


def test_clocks_are_in_hertz(tmp_path):
    board = board_of(planted(ORIN_NANO, tmp_path))
    assert board.clocks == {"17000000.gpu": (612e6, 612e6, 612e6), "cpu 0": (1510.4e6, 1510.4e6, 1510.4e6)}


def test_a_command_that_fails_tells_no_mode(tmp_path):
    root = planted(
        {**ORIN_NANO, "usr/sbin/nvpmodel": "#!/bin/sh\necho 'NVPM ERROR: no permission' >&2; exit 1\n"}, tmp_path
    )
    assert board_of(root).power_mode == ""


@pytest.mark.parametrize(("text", "release"), [("# R38 (release), REVISION: 2.0, GCID", "38.2.0"), ("", ""), ("x", "")])
def test_releases(text, release):
    assert l4t_release(text) == release


def test_modes():
    assert power_mode("NVPM WARN: fan\nNV Power Mode: MAXN_SUPER\n2\n") == "MAXN_SUPER"
