"""A Study: one task, many recipes, several seeds - run on an engine, resumable after a kill, written as plain files.

schema.py   what a study file may say, checked before anything runs
folder.py   what lies where under the output directory, who may write there, what is finished
jobs.py     the work of one reference and of one (recipe, seed): picklable, the same on every engine
engine.py   where jobs run: in this process, in others, on a Ray cluster
run.py      the order of things: references, compression in parallel, then timing alone
"""

from __future__ import annotations

from lessen.study.run import StudyResult, run
from lessen.study.schema import MeasureOptions, Study

__all__ = ["MeasureOptions", "Study", "StudyResult", "run"]
