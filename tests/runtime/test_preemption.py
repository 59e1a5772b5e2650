"""SIGTERM and Ctrl-C as requests."""

import os
import signal
import threading
import time

import pytest

from jaxrec.runtime.preemption import Preempted, Preemption


def test_sigterm_is_noted_and_the_handler_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.requested
        signal.raise_signal(signal.SIGTERM)
        assert preemption.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_interrupts_what_can_be_given_up():
    with Preemption() as preemption:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(Preempted), preemption.interrupting():
            time.sleep(10)
        timer.join()
        with pytest.raises(Preempted), preemption.interrupting():
            pytest.fail("a request from before is honoured too")
        signal.raise_signal(signal.SIGTERM)  # outside the block: noted only
        assert preemption.requested


def test_outside_the_main_thread_nothing_is_installed():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with Preemption() as preemption:
            seen.append((signal.getsignal(signal.SIGTERM) is before, preemption.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, False)]


@pytest.fixture
def ctrl_c():
    """Python's own handler: a shell that starts the tests behind `&` has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_a_request_once(ctrl_c, capsys):
    before = signal.getsignal(signal.SIGINT)
    with Preemption(ctrl_c=True) as preemption:
        signal.raise_signal(signal.SIGINT)
        assert preemption.requested
        assert preemption.received == signal.SIGINT
        assert "press it again to stop at once" in capsys.readouterr().err
        assert (preemption.stopped().cause, preemption.stopped().status) == ("Ctrl-C", 130)
        with pytest.raises(Preempted, match="Ctrl-C"), preemption.interrupting():
            pytest.fail("a request from before is honoured too")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with Preemption(ctrl_c=True) as preemption:
        signal.raise_signal(signal.SIGTERM)
        assert (preemption.stopped().cause, preemption.stopped().status) == ("SIGTERM", 0)
    with Preemption(), pytest.raises(KeyboardInterrupt):  # unless it is asked for
        signal.raise_signal(signal.SIGINT)
