"""Measuring the method: data sets, methods, studies over seeds, and their tables."""

from cae.evaluation.datasets import DatasetError, LabelledEmbeddings, LabelledImages, load_dataset
from cae.evaluation.methods import METHODS, Method, Problem, parse_method, run_method
from cae.evaluation.run import evaluate
from cae.evaluation.study import conditions, embed, load_banks, make_problem, run_study
from cae.evaluation.tables import plot_tsne, write_study

__all__ = [
    "METHODS",
    "DatasetError",
    "LabelledEmbeddings",
    "LabelledImages",
    "Method",
    "Problem",
    "conditions",
    "embed",
    "evaluate",
    "load_banks",
    "load_dataset",
    "make_problem",
    "parse_method",
    "plot_tsne",
    "run_method",
    "run_study",
    "write_study",
]
