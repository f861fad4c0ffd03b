"""The scenarios, one YAML file each; what a file says is described in `loadtest.load.plan`."""
