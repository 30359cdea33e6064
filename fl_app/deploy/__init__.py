"""Deployments: the files of every machine, the server's processes, and a trial on one machine."""
