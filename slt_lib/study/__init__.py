"""The algebra of the paper's section 3: studies, tickets and runs."""

from slt_lib.study.chains import Chain, Recipe
from slt_lib.study.runs import Run
from slt_lib.study.study import Study
from slt_lib.study.tickets import Ticket
