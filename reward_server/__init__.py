"""The reward service: a scoring API over a generative judge (GenRM) that runs under a stock vLLM server."""
