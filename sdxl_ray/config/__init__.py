"""What a person may set: recipes, experiments, search spaces and load profiles, read from YAML and checked."""
