#!/bin/sh
# The server of this deployment.
#
#   start-superlink.sh              all of it, until Ctrl-C
#   start-superlink.sh superlink    Flower's SuperLink alone      } what systemd and compose run, so
#   start-superlink.sh superexec    what starts ServerApps        } that each outlives the other
#   start-superlink.sh register     tell the SuperLink of devices that were added or removed
#
# Needs edge-fl and Flower's programs on the PATH or in $EDGE_FL_VENV/bin. Everything it writes goes
# to $EDGE_FL_STATE (default: `state` beside this script).
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# Every place as seen from here, before `cd`.
case ${EDGE_FL_VENV:-/} in /*) ;; *) EDGE_FL_VENV=$PWD/$EDGE_FL_VENV ;; esac
case ${EDGE_FL_STATE:=$here/state} in /*) ;; *) EDGE_FL_STATE=$PWD/$EDGE_FL_STATE ;; esac
if [ -n "${EDGE_FL_VENV:-}" ]; then PATH=$EDGE_FL_VENV/bin:$PATH; fi
case ${1:-all} in superexec) program=flower-superexec ;; *) program=edge-fl ;; esac
found=$(command -v "$program") || {
    echo "start-superlink.sh: no $program on the PATH; activate its environment, or set EDGE_FL_VENV" >&2
    exit 2
}
state=$EDGE_FL_STATE
mkdir -p -m 700 "$state" "$state/flower"
cd "$state"

# The ServerApp finds its site here. Telemetry and update checks cost seconds per process without a
# way out; dependencies are installed once, by you, not by Flower before every run.
export PATH EDGE_FL_STATE EDGE_FL_SITE="$here" FLWR_HOME="$state/flower" \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.1
@SURROUNDINGS@

security=@SECURITY@
port=@PORT@

superlink() {
    set -- --isolation process --disable-runtime-dependency-installation \
        --database "$state/superlink.db" --port "$port"
    if [ "$security" = tls ]; then
        set -- "$@" --host "${EDGE_FL_LISTEN:-@LISTEN@}" --enable-supernode-auth --ssl-ca-certfile "$here/ca.crt" \
            --ssl-certfile "$here/site.crt" --ssl-keyfile "$here/site.key" \
            --superexec-auth-secret-file "$here/superexec.secret"
    else
        set -- "$@" --host @LISTEN@ --insecure
    fi
    # flower-superlink, behind a gate: other machines reach only what SuperNodes need.
    exec "$(dirname -- "$found")/python" -P -m fl_app.deploy.gate "$@"
}

superexec() {
    set -- --runtime-api-address "127.0.0.1:$port"
    if [ "$security" = tls ]; then
        set -- "$@" --root-certificates "$here/ca.crt" \
            --superexec-auth-secret-file "$here/superexec.secret"
    else
        set -- "$@" --insecure
    fi
    exec flower-superexec "$@"
}

case ${1:-all} in
    superlink) superlink ;;
    superexec) superexec ;;
    register) exec edge-fl deploy register "$here" ;;
    all) exec edge-fl deploy serve "$here" ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$here/start-superlink.sh" >&2; exit 2 ;;
esac
