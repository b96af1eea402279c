"""Instants on staff's pages: 24 hours, seconds and the zone, so that two people on the phone mean the same one."""

DATETIME_FORMAT = "j M Y, H:i:s e"
