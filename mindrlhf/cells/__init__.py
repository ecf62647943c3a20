"""Graph blocks: scoring, the preference cell, the train step."""
