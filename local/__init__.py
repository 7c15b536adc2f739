"""The whole system on one laptop: its servers, its processes, and a demo of it."""
