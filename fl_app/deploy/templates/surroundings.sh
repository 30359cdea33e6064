# Flower's programs talk to one another over the loopback interface, in which no proxy has a part.
# Nor have other packages than those that are installed, whatever names they have.
no_proxy=${no_proxy:-${NO_PROXY:-}}
no_proxy=${no_proxy:+$no_proxy,}127.0.0.1,localhost
export no_proxy NO_PROXY="$no_proxy" PYTHONUTF8=1
unset PYTHONPATH PYTHONOPTIMIZE PYTHONWARNINGS PYTHONIOENCODING
