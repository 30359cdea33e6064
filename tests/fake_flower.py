#!/usr/bin/env python3
"""A stand-in for Flower's programs: which one it is, is its file name; what happens, $FAKE_FLOWER.

The SuperLink answers /health and starts a "flwr-simulation" in a session of its own, as Flower's
does; `flwr log` shows a log with all of Flower's noise. $FAKE_FLOWER: "completed", "failed" and
"diverged" (the ServerApp raised), "unfinished" (sys.exit in the ServerApp: completed for Flower, no
summary), "asleep" (fails unless it is resumed), "endless" (until stopped), "stuck" (after its last
word), "unbegun" (no word from the ServerApp), "refused" (by `flwr run`), "broken" (the SuperLink
does not start), "told" (to end while `flwr run` has not said the run's id yet), "mute" (no word
from `flwr run`).
"""

import http.server
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SCENARIO = os.environ.get("FAKE_FLOWER", "completed")
RAISED = {
    "failed": "ValueError: bad",
    "asleep": "No heartbeat received from the task",
    "diverged": "Simulation failed with exception: diverged: window 2, node 3: not finite",
}
HOME = Path(os.environ["EDGE_FL_HOME"])
RUN, VALUES = HOME / "runs" / "one", HOME / "values.toml"
if SCENARIO == "asleep" and VALUES.exists() and "resume = " in VALUES.read_text():
    SCENARIO = "completed"
LOG = """\
\x1b[92mINFO \x1b[0m:      Starting logstream for run_id `7`
\x1b[92mINFO \x1b[0m:      Starting Flower Simulation
\x1b[93mWARNING \x1b[0m:   Since flwr 1.32, default simulated SuperNodes changed from 10 to 2.
Successfully installed edge-fl to /somewhere/apps/edge-fl.edge-fl.0.1.0.12345678.
run directory: {run}
round 1/1 accuracy 0.9
\x1b[93mWARNING \x1b[0m:   participant 2 was rejected
\x1b[36m(ClientAppActor pid=9)\x1b[0m \x1b[93mWARNING \x1b[0m:   Manually terminating ClientAppActor
\x1b[92mINFO \x1b[0m:      \
"""


def flwr(command: str, *arguments: str) -> int:
    """`flwr run|log|list`."""
    if command == "run":
        assert Path(arguments[0], "pyproject.toml").exists()
        (HOME / "submitted.json").write_text(json.dumps(arguments))
        VALUES.write_text(Path(arguments[arguments.index("--run-config") + 1]).read_text())
        if SCENARIO == "refused":
            print(json.dumps({"success": False, "error-message": "Invalid run configuration."}))
            return 1
        if SCENARIO == "told":
            os.kill(os.getppid(), signal.SIGTERM)
        if SCENARIO in ("told", "mute"):
            time.sleep(1 if SCENARIO == "told" else 600)
        print(json.dumps({"success": True, "run-id": "7"}))
    elif command == "stop":
        (HOME / "stopped.json").write_text(json.dumps(arguments))
        print(json.dumps({"success": True}))
    elif command == "log" and SCENARIO == "unbegun":
        print(LOG.splitlines()[0], flush=True)
        time.sleep(0 if "--show" in arguments else 1)
    elif command == "log":
        if SCENARIO != "refused":
            RUN.mkdir(parents=True, exist_ok=True)
        if SCENARIO in ("completed", "stuck"):
            (RUN / "summary.json").write_text('{"status": "completed"}')
        print(LOG.format(run=RUN), flush=True)
        if "--show" in arguments:  # the stream has ended a moment too early
            print("again\nagain\nround 1/1 accuracy 0.9")
        if SCENARIO == "stuck":
            print(f"run directory: {RUN}", flush=True)
        while SCENARIO in ("endless", "stuck") and "--show" not in arguments:
            time.sleep(1)
    elif command == "list":
        raised = RAISED.get(SCENARIO)
        status = {"status": "finished:failed" if raised else "finished:completed"}
        if SCENARIO == "stuck":
            status = {"status": "running"}
        status["status-details"] = raised or "N/A"
        print(json.dumps({"success": True, "runs": [status]}))
    return 0


def superlink(*arguments: str) -> int:
    """`flower-superlink`."""
    if SCENARIO == "broken":
        print("the port is taken", flush=True)
        return 3
    simulation = Path(sys.argv[0]).with_name("flwr-simulation")
    subprocess.Popen([simulation], start_new_session=True)
    port = int(arguments[arguments.index("--port") + 1])

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
    return 0


def simulation() -> int:
    """`flwr-simulation`: leaves its pid, the environment it got, and never ends by itself."""
    (HOME / "environment.json").write_text(json.dumps({**os.environ, "cwd": os.getcwd()}))
    (HOME / "draft").write_text(str(os.getpid()))
    (HOME / "draft").rename(HOME / "simulation.pid")
    while True:
        time.sleep(1)


if __name__ == "__main__":
    programs = {"flwr": flwr, "flower-superlink": superlink, "flwr-simulation": simulation}
    sys.exit(programs[Path(sys.argv[0]).name](*sys.argv[1:]))
