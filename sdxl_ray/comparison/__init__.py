"""Experiments: several ways of tuning under equal conditions, evaluated and served side by side."""
