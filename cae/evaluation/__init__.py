"""Measuring the method: data sets, methods, studies over seeds, and their tables."""

from cae.evaluation.methods import METHODS, Method, Problem, run_method

__all__ = ["METHODS", "Method", "Problem", "run_method"]
