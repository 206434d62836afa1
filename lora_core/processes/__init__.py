"""Processes on this machine: who starts them, and an executor that keeps some of them busy."""
