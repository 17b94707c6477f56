"""`python -m agentidp_analytics` is the command `agentidp-analytics`."""

from agentidp_analytics.cli import main

main()
