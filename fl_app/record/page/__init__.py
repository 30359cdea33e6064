"""The page of a run, live (`edge-fl watch`) or frozen into its report: what it shows, as data
(`snapshot`), and the one HTML file that shows it (`html`)."""
