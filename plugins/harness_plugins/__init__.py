"""The built-in data sets, defenses and attacks, brought through the public entry points."""
