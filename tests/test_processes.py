"""Calls in processes: their order, how many are held, and a process that dies."""

import os
import subprocess
import sys
import textwrap

from slt_lib.base import processes


def square(number: int, parent: int) -> tuple[int, bool]:
    return number * number, os.getpid() == parent


def dies_elsewhere(number: int, parent: int) -> int:
    if os.getpid() != parent:
        os._exit(9)
    return number


def test_in_order_and_no_more_than_asked_for():
    taken = 0

    def calls():
        nonlocal taken
        for number in range(12):
            taken += 1
            yield number, os.getpid()

    for jobs in (1, 2):
        taken, found = 0, []
        for result, here in processes.in_order(square, calls(), jobs):
            found.append(result)
            assert here == (jobs == 1)
            assert taken - len(found) <= jobs + 1
        assert found == [number * number for number in range(12)]


def test_what_a_dead_process_left_is_done_here():
    calls = ((number, os.getpid()) for number in range(6))
    assert list(processes.in_order(dies_elsewhere, calls, 2)) == list(range(6))


def test_a_script_without_a_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        from slt_lib.base.processes import in_order
        print(list(in_order(divmod, ((n, 3) for n in range(7)), 2)))
        """)
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and ended.stdout.splitlines()[-1] == str([divmod(n, 3) for n in range(7)])
