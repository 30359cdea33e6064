"""How the machines of a deployment talk during a run: a mail router at the server (Eclipse Zenoh),
to which every device connects outwards, with its own certificate."""
