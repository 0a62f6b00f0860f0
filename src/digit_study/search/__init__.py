"""The Optuna sweep: the space, the sampler, the study's store, the supervisor, the leaderboard."""
