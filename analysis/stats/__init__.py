"""Statistics on plain arrays and frames; nothing here knows a study."""
