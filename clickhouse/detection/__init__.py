"""The detector: what is unusual in the counts of agents and tenants, in SQL over the rollups."""
