"""Every metric and the access line, observed once per request from its trail."""
