"""`edge-fl run`: one Flower run from start to finish, with an exit code that can be believed.

Every run gets a SuperLink of its own, in a directory of its own, and takes both along when it ends.
Sharing one SuperLink, as `flwr run` does, would save about four seconds a run; but it keeps the
environment variables, the working directory (from which Ray's actors import before anything else)
and the Python packages of whoever happened to start it, it outlives its user, and the run states it
remembers are those of other runs. All of these are ways of running something else than what stands
in the working tree.

What plain `flwr run` leaves open is closed here:
- the exit code: 0 only if Flower and the run's own summary both say completed;
- size: as many SuperNodes as can work at once, one CPU each, and a share of a GPU that is there;
- Ray: a cluster of its own under the run's directory, so that a stale one elsewhere is not joined;
- no installation of dependencies, no telemetry, no update check: the same with and without network;
- the end: whatever ends this process, `supervise` ends all that the run has started.
"""
