"""What tests are made with: real parts as processes, the oracle, harnesses, hostile inputs."""
