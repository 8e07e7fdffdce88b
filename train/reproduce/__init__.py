"""The paper's tables and figures: their runs as commands, and what came out."""
