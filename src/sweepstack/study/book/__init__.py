"""The study's records: claims, reports, ends, recovery."""
