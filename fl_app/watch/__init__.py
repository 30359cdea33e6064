"""`edge-fl watch`: the page of runs on this machine, live, on the loopback interface alone."""
