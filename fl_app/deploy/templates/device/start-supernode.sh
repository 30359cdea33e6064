#!/bin/sh
# The device @DEVICE@ of this deployment: Flower's SuperNode, until Ctrl-C.
#
#   start-supernode.sh [DATA]
#
# DATA, or $EDGE_FL_DATA: its own images, an .npz file or a folder of them; they never leave it.
# Without, the device takes its share of the run's data set. Flower refuses a SuperNode that comes
# back within a minute of being cut off: start it again until it stays (systemd does).
#
# Needs Flower's programs on the PATH or in $EDGE_FL_VENV/bin. Everything it writes goes to
# $EDGE_FL_STATE (default: `state` beside this script).
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ -n "${EDGE_FL_VENV:-}" ]; then PATH=$EDGE_FL_VENV/bin:$PATH; fi
state=${EDGE_FL_STATE:-$here/state}
mkdir -p -m 700 "$state" "$state/flower"

data=${1:-${EDGE_FL_DATA:-}}
config="name=\"@DEVICE@\" site=\"$here\""
if [ -n "$data" ]; then
    if [ ! -e "$data" ]; then echo "start-supernode.sh: there is no $data" >&2; exit 2; fi
    data=$(CDPATH='' cd -- "$(dirname -- "$data")" && pwd)/$(basename -- "$data")
    config="$config data-path=\"$data\""
fi
cd "$state"

export PATH FLWR_HOME="$state/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.1

set -- --superlink "@SUPERLINK@" --node-config "$config" \
    --host 127.0.0.1 --port "${EDGE_FL_PORT:-@NODE-PORT@}"
if [ "@SECURITY@" = tls ]; then
    set -- "$@" --root-certificates "$here/ca.crt" --auth-supernode-private-key "$here/supernode.key"
else
    set -- "$@" --insecure
fi
exec flower-supernode "$@"
