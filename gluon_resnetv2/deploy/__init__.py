"""Where files that people have still look for what lives in other rooms today."""
