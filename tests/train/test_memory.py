import mmap
import resource

from spfde.train.device import forget_process_peak, process_peak

BLOCK = 64 * 2**20


def hold_for_a_moment():
    block = mmap.mmap(-1, BLOCK)  # straight from the system, and straight back
    block.write(b"1" * BLOCK)
    block.close()


def test_the_peak_stays_until_it_is_forgotten():
    forget_process_peak()
    before = process_peak()
    hold_for_a_moment()
    assert process_peak() >= before + BLOCK
    forget_process_peak()
    assert process_peak() < before + BLOCK


def test_a_system_without_proc_knows_the_peak_of_the_whole_process(tmp_path):
    forget_process_peak(tmp_path / "none")
    assert process_peak(tmp_path / "none") == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_status_without_the_peak(tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t12 kB\n")
    assert process_peak(tmp_path) >= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 2
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  12 kB\n")
    assert process_peak(tmp_path) == 12 * 1024
