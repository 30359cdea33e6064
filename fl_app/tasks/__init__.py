"""The tasks that ship with the app; `fl_app.problem` has their names."""
