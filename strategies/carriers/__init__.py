"""What carries neighbours' mail between the hosts of a consensus run; each is an `Exchange`."""
