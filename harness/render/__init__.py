"""From a leaderboard to pages: each module has one `render`. Only `cost` shows times."""
