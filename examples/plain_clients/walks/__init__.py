"""Walking, running or climbing stairs: from a sensor on the wrist."""
