"""OpenTelemetry traces of calls. Its packages are optional: only `opening` may be imported where
they might be missing."""
