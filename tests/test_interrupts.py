"""Ctrl-C: once asks, twice stops; outside of the context it is as ever."""

import os
import signal
import threading

import pytest

from autopeft.interrupts import Interrupts


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_once_asks_and_says_so_twice_stops():
    said = []
    with Interrupts(said.append) as interrupts:
        assert not interrupts.asked
        press()
        assert interrupts.asked
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            press()
    assert len(said) == 1


def test_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="x"), Interrupts(print):
        raise ValueError("x")
    assert signal.getsignal(signal.SIGINT) is before


def test_in_a_thread_of_a_notebook_nothing_is_touched():
    before, inside = signal.getsignal(signal.SIGINT), []

    def work():
        with Interrupts(print):
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
