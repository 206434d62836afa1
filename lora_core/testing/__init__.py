"""What backend plugins test themselves with: tiny models and adapters, and the conformance kit."""
