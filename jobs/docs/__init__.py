"""Programs that generate parts of docs/: reference tables and pictures."""
