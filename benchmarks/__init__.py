"""One program a question; each ends with one JSON line."""
