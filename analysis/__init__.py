"""From the records of a study to tables and pictures; pure functions on frames, no torch anywhere."""
