"""Overlays as a cluster runs them: their pods as processes here, before a stand-in API server."""
