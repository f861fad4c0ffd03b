"""What Poolgate is measured against: a vLLM look-alike, a load generator and its scenarios."""
