"""Study: readers compare arms of the same slices, blinded; what they say, unblinded."""

from medqdm.review.study.analysis import PAIRS, Reading, Results, analyse_study
from medqdm.review.study.answers import Answer, read_answers, save_answer
from medqdm.review.study.build import make_study
from medqdm.review.study.files import Key, Study, is_study, read_key, read_study
from medqdm.review.study.results import ResultTable, tables_of, write_results
from medqdm.review.study.serve import StudyServer

__all__ = [
    "PAIRS",
    "Answer",
    "Key",
    "Reading",
    "ResultTable",
    "Results",
    "Study",
    "StudyServer",
    "analyse_study",
    "is_study",
    "make_study",
    "read_answers",
    "read_key",
    "read_study",
    "save_answer",
    "tables_of",
    "write_results",
]
