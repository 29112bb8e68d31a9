"""The parts of a night that also run on their own, as Prefect tasks: what each does is in the library."""

from __future__ import annotations

from nightgate.config.pipeline import Pipeline
from nightgate.database.transactions import Database
from nightgate.home import open_home
from nightgate.night.champion_evaluation import evaluate_newest
from nightgate.night.refresh import refresh as take_in
from nightgate.prediction.predict import predict_configured
from nightgate.runs.evaluations import Evaluation
from tasks.night import step

refresh = step("refresh")(take_in)
predict = step("predict")(predict_configured)


@step("evaluate the champion")
def evaluate(pipeline: Pipeline) -> tuple[Evaluation, ...]:
    """Evaluate champion and anchor on the newest snapshot."""
    with Database.open(open_home()) as db:
        return evaluate_newest(db, pipeline)
