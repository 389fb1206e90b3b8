"""The paper as commands: its tables, figures and equations, with its numbers beside ours."""
