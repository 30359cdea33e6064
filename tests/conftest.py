"""How tests run."""

import signal

# Who starts the tests in the background of a shell script starts them with SIGINT ignored, and what
# is ignored stays ignored in all that they start: a test of Ctrl-C would wait for ever.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)
