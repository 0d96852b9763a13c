"""The study engine: settings files, artifacts by key, jobs, notebooks, runners, results, reports."""
