"""The rollout fleet: stock vLLM servers that write completions and take new weights while they run."""
