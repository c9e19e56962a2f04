"""Study: readers compare arms of the same slices, blinded; what they say, unblinded."""

from studies.reader_study.analysis import PAIRS, Reading, Results, analyse_study
from studies.reader_study.answers import Answer, read_answers, save_answer
from studies.reader_study.build import make_study
from studies.reader_study.files import Key, Study, is_study, read_key, read_study
from studies.reader_study.results import ResultTable, tables_of, write_results
from studies.reader_study.serve import StudyServer

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
