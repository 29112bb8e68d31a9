"""The gate: may this candidate replace the champion? A pure function of evidence and policy."""

from nightgate.gate.decide import decide as decide
from nightgate.gate.evidence import Evidence as Evidence
from nightgate.gate.evidence import Rows as Rows
from nightgate.gate.evidence import Serving as Serving
from nightgate.gate.evidence import Side as Side
from nightgate.gate.evidence import Slice as Slice
from nightgate.gate.health import SERVING_TOLERANCE as SERVING_TOLERANCE
from nightgate.gate.health import unserved as unserved
from nightgate.gate.verdicts import Check as Check
from nightgate.gate.verdicts import Decision as Decision
from nightgate.gate.verdicts import Measured as Measured
from nightgate.gate.verdicts import Outcome as Outcome
from nightgate.gate.verdicts import Score as Score
from nightgate.gate.verdicts import Verdict as Verdict
from nightgate.gate.window import test_window as test_window
from nightgate.gate.words import told_apart as told_apart
