"""A signal ends a training once, wherever it comes."""

import os
import signal

import pytest

from dassl.extras.interrupts import Interrupted, interruptible, raise_again, uninterrupted


class Signals:
    """Receives a signal while it is deleted."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_within_a_finalizer_is_not_lost() -> None:
    with interruptible():
        raise_again()
        Signals()  # Python drops the exception
        with uninterrupted():
            raise_again()  # another process may have to hear of it first
        with pytest.raises(Interrupted) as caught:
            raise_again()
        assert caught.value.signum == signal.SIGTERM
