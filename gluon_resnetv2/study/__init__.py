"""The paper as commands: its tables, figures and equations, with its numbers beside ours."""

# What a study trains its rows on; "paper" is each row's own data set.
DATASETS = ("digits", "cifar10", "cifar100", "paper")
