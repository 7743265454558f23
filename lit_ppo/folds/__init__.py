"""Every fold trained, selected on validation and tested once; candidates, watching and tuning around it."""
