"""The page on time: where a step's goes, what waits for what, and how the training gets on."""

from __future__ import annotations

from typing import Final

from cutlayer.dashboards.metric_labels import AGENT_STAGES, Stage
from cutlayer.dashboards.overview_board import ACCURACY, ROUND_TRIP, ROUND_TRIPS, STAGES
from cutlayer.dashboards.panels import Board, Panel, Row, Shape, Target, Threshold, Unit
from cutlayer.dashboards.query import Buckets, Mean, Quantile, Query, Rate, Value, Within

__all__ = ["DEFAULT_SLO_S", "LATENCY", "SLO_VARIABLE"]

SLO_VARIABLE: Final = "slo"
DEFAULT_SLO_S: Final = 1.0
STAGE: Final = "cutlayer_stage_seconds"
STALENESS: Final = "cutlayer_staleness_versions"
WORKER_STAGES: Final = tuple(stage for stage in Stage if stage not in AGENT_STAGES)
WITHIN_SLO: Final = Within(ROUND_TRIP, bound=DEFAULT_SLO_S, variable=SLO_VARIABLE)


def _number(
    title: str, description: str, unit: Unit, query: Query, *thresholds: Threshold, decimals: int | None = None
) -> Panel:
    return Panel(
        title,
        description,
        unit,
        Shape.NUMBER,
        (Target(query, title.lower()),),
        width=4,
        height=4,
        thresholds=thresholds,
        decimals=decimals,
    )


def _lines(title: str, description: str, unit: Unit, *targets: Target, width: int = 12) -> Panel:
    return Panel(title, description, unit, Shape.LINES, targets, width=width)


def _stages(title: str, description: str, stages: tuple[Stage, ...]) -> Panel:
    where = {"stage": tuple(stage.value for stage in stages)}
    return _lines(title, description, Unit.SECONDS, Target(Quantile(STAGE, ("stage",), where, share=0.95), "{{stage}}"))


def _waiting(stage: Stage, title: str, description: str) -> Panel:
    where = {"stage": stage.value}
    return _lines(
        title,
        description,
        Unit.SECONDS,
        Target(Quantile(STAGE, (), where, share=0.5), "50 %", "good"),
        Target(Quantile(STAGE, (), where, share=0.95), "95 %", "warn"),
        width=8,
    )


NUMBERS: Final = (
    _number(
        "Round trip, 50 %",
        "Half of the microbatches have their outputs back within this time.",
        Unit.SECONDS,
        Quantile(ROUND_TRIP, share=0.5),
    ),
    _number(
        "Round trip, 95 %",
        "Nineteen of twenty microbatches have their outputs back within this time.",
        Unit.SECONDS,
        Quantile(ROUND_TRIP, share=0.95),
    ),
    _number(
        "Round trip, 99 %",
        "Of a hundred microbatches all but one have their outputs back within this time.",
        Unit.SECONDS,
        Quantile(ROUND_TRIP, share=0.99),
    ),
    _number(
        "Within the target",
        "Share of the microbatches whose outputs are back within the target chosen above.",
        Unit.SHARE,
        WITHIN_SLO,
        Threshold(0, "bad"),
        Threshold(0.9, "warn"),
        Threshold(0.99, "good"),
        decimals=1,
    ),
    _number(
        "Staleness",
        "Mean number of versions that the weights have gone on between a microbatch's forward pass and its commit; 0 "
        "in synchronous runs.",
        Unit.PLAIN,
        Mean(STALENESS),
        decimals=2,
    ),
    _number(
        "Window fill",
        "Samples of the last window committed, of those that a window wants: below 1 its deadline closed it.",
        Unit.SHARE,
        Value("cutlayer_window_fill_ratio"),
        decimals=0,
    ),
)
ROUND_TRIP_MAP: Final = Panel(
    "Round trips by length",
    "Microbatches a second by the length of their round trip. Two bands are two kinds of sites or links.",
    Unit.SECONDS,
    Shape.HEATMAP,
    (Target(Buckets(ROUND_TRIP), "{{le}}"),),
)
CREDITS: Final = _lines(
    "Credits",
    "Microbatches that agents may have outstanding, and those that are. Used at the level of granted means that the "
    "workers are the narrow place; far below it, the agents or their links are.",
    Unit.PLAIN,
    Target(Value("cutlayer_credits", ("state",)), "{{state}}"),
    width=8,
)
SAMPLES_HELD: Final = _lines(
    "Samples held",
    "Samples whose graphs are alive at the workers, and those in the open window.",
    Unit.PLAIN,
    Target(Value("cutlayer_live_samples"), "graphs alive", "warn"),
    Target(Value("cutlayer_window_open_samples"), "in the open window", "neutral"),
    width=8,
)
FILL: Final = _lines(
    "Window fill",
    "Samples of the last window committed, of those that a window wants.",
    Unit.SHARE,
    Target(Value("cutlayer_window_fill_ratio"), "fill", "good"),
    width=8,
)
STALE: Final = _lines(
    "Staleness",
    "Versions of the weights between a microbatch's forward pass and its commit.",
    Unit.PLAIN,
    Target(Quantile(STALENESS, share=0.5), "50 %", "good"),
    Target(Quantile(STALENESS, share=0.95), "95 %", "warn"),
    width=8,
)
SOURCES: Final = _lines(
    "Activations from",
    "Microbatches a second that came with their tensors, or as references to activations that the worker has stored.",
    Unit.PER_SECOND,
    Target(Rate("cutlayer_activations_total", ("source",)), "{{source}}"),
    width=8,
)
SPEED: Final = _lines(
    "Steps and windows",
    "Microbatches and windows committed a second.",
    Unit.PER_SECOND,
    Target(Rate("cutlayer_steps_total"), "microbatches", "good"),
    Target(Rate("cutlayer_windows_total"), "windows", "neutral"),
    width=8,
)
LOSS: Final = _lines(
    "Loss",
    "Mean loss in nats: train over the agents' last reports, test over their own test samples after each epoch.",
    Unit.PLAIN,
    Target(Value("cutlayer_loss", ("split",)), "{{split}}"),
)
GRADIENT: Final = _lines(
    "Gradient norm",
    "Norm of the last mean gradient before clipping.",
    Unit.PLAIN,
    Target(Value("cutlayer_gradient_norm"), "norm", "neutral"),
    width=8,
)
LEARNING_RATE: Final = _lines(
    "Learning rate",
    "Of the last optimizer step.",
    Unit.SCIENTIFIC,
    Target(Value("cutlayer_learning_rate"), "learning rate", "neutral"),
    width=8,
)
PROGRESS: Final = _lines(
    "Epochs",
    "Epochs that the agents have committed, on average.",
    Unit.PLAIN,
    Target(Value("cutlayer_run_epochs"), "epochs", "good"),
    width=8,
)
PHASE: Final = Panel(
    "Phase",
    "1 for the phase that the run is in.",
    Unit.PLAIN,
    Shape.STACK,
    (Target(Value("cutlayer_run_phase", ("phase",)), "{{phase}}"),),
    width=24,
    height=5,
)
VERSION: Final = _lines(
    "Version of the weights",
    "It rises by one with each optimizer step.",
    Unit.PLAIN,
    Target(Value("cutlayer_weights_version"), "version", "neutral"),
    width=8,
)

LATENCY: Final = Board(
    "cutlayer-latency",
    "Latency by stage",
    "Where does the time of a step go, what waits for what, and how does the training get on?",
    (
        Row("", NUMBERS),
        Row("Round trip", (ROUND_TRIPS, ROUND_TRIP_MAP)),
        Row(
            "Stages",
            (
                STAGES,
                _stages(
                    "Stages at the worker, 95 %",
                    "Time within which nineteen of twenty of each of the worker's stages are done; decode, forward, "
                    "publish and backward are of a whole group of microbatches.",
                    WORKER_STAGES,
                ),
                _stages(
                    "Stages at the agents, 95 %",
                    "Time within which nineteen of twenty of each of the agents' stages are done; network is the round "
                    "trip without the worker's own time.",
                    AGENT_STAGES,
                ),
                _lines(
                    "Within the target",
                    "Share of the microbatches whose outputs are back within the target chosen above.",
                    Unit.SHARE,
                    Target(WITHIN_SLO, "within the target", "good"),
                ),
            ),
        ),
        Row(
            "Waiting",
            (
                _waiting(Stage.QUEUE, "Queue", "Activations received until their forward pass begins."),
                _waiting(
                    Stage.WAIT, "Waiting for the window", "Backward pass of a microbatch done until its window commits."
                ),
                CREDITS,
                SAMPLES_HELD,
                FILL,
                STALE,
            ),
        ),
        Row("Training", (LOSS, ACCURACY, SPEED, SOURCES, PROGRESS, GRADIENT, LEARNING_RATE, VERSION, PHASE)),
    ),
)
"""Time, and what the training makes of it."""
