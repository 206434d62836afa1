"""Running bundles: sessions, tokenizers, chat templates, generation, reports and benchmarks."""
