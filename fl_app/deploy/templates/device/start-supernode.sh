#!/bin/sh
# The device @DEVICE@ of this deployment: Flower's SuperNode, until Ctrl-C.
#
#   start-supernode.sh [DATA]
#
# DATA, or $EDGE_FL_DATA: its own images, an .npz file or a folder of them; they never leave it.
# Without, the device takes its share of the run's data set.
#
# When the SuperNode ends it is started again, after $EDGE_FL_AGAIN seconds (default 10): Flower
# refuses one that is not registered yet, or comes back within a minute of a power cut, and one ends
# by itself when the SuperLink has forgotten it.
#
# supernode.py, beside this script, imports Flower and torch once for all processes of the device.
# EDGE_FL_PRELOAD= (empty) leaves torch to each run: an idle device takes less memory then.
#
# Needs Flower's programs on the PATH or in $EDGE_FL_VENV/bin. Everything it writes goes to
# $EDGE_FL_STATE (default: `state` beside this script).
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# Every place as seen from here, before `cd`.
case ${EDGE_FL_VENV:-/} in /*) ;; *) EDGE_FL_VENV=$PWD/$EDGE_FL_VENV ;; esac
case ${EDGE_FL_STATE:=$here/state} in /*) ;; *) EDGE_FL_STATE=$PWD/$EDGE_FL_STATE ;; esac
if [ -n "${EDGE_FL_VENV:-}" ]; then PATH=$EDGE_FL_VENV/bin:$PATH; fi
state=$EDGE_FL_STATE
mkdir -p -m 700 "$state" "$state/flower"

data=${1:-${EDGE_FL_DATA:-}}
config="name=\"@DEVICE@\" site=\"$here\""
if [ -n "$data" ]; then
    if [ ! -e "$data" ]; then echo "start-supernode.sh: there is no $data" >&2; exit 2; fi
    data=$(CDPATH='' cd -- "$(dirname -- "$data")" && pwd)/$(basename -- "$data")
    config="$config data-path=\"$data\""
fi
case $here$data in *[\"\\]*)
    echo "start-supernode.sh: Flower takes no path with \" or \\ in it: $here $data" >&2; exit 2 ;;
esac
cd "$state"

export PATH FLWR_HOME="$state/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.1
@SURROUNDINGS@
# What serves a run goes on while this script lives, whatever becomes of the SuperNode.
export EDGE_FL_KEEPER=$$

# The Python of Flower's programs.
program=$(command -v flower-supernode) || {
    echo "start-supernode.sh: no flower-supernode on the PATH; see requirements-device.txt" >&2; exit 2
}
python=$(dirname -- "$program")/python

# This script alone holds the lock, as long as it lives: what it starts may outlive it.
exec 9< "$state"
"$python" -c '
import fcntl, sys
try: fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError: sys.exit(1)
except OSError: pass  # a file system without locks
' || {
    echo "start-supernode.sh: this device runs already (state in $state)" >&2; exit 2
}

set -- --superlink "@SUPERLINK@" --node-config "$config" \
    --host 127.0.0.1 --port "${EDGE_FL_PORT:-@NODE-PORT@}"
if [ "@SECURITY@" = tls ]; then
    set -- "$@" --root-certificates "$here/ca.crt" --auth-supernode-private-key "$here/supernode.key"
else
    set -- "$@" --insecure
fi
child=
trap 'kill "$child" 2>/dev/null || true; wait "$child" || true; exit 0' HUP INT TERM
while :; do
    "$python" -P "$here/supernode.py" "$@" 9<&- &
    child=$!
    wait "$child" || true
    again=${EDGE_FL_AGAIN:-10}
    echo "edge-fl: the SuperNode of @DEVICE@ ended; again in $again s. If it was refused: is it" \
        "registered, has it been off for a minute, is its clock right? Here it is $(date -u)." >&2
    sleep "$again" 9<&- &
    child=$!
    wait "$child" || true
done
