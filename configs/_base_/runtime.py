"""Runtime defaults that every recipe inherits: hooks, logging, environment. Never a hyper-parameter."""

from mmengine.hooks import ParamSchedulerHook, RuntimeInfoHook
from mmengine.visualization import LocalVisBackend, TensorboardVisBackend, Visualizer

from xrlhf.engine.hooks import CurvesHook, StepCheckpointHook, StepLoggerHook, StepTimerHook, ThroughputHook
from xrlhf.engine.logging import StepLogProcessor

default_hooks = dict(
    runtime_info=dict(type=RuntimeInfoHook),
    timer=dict(type=StepTimerHook),
    throughput=dict(type=ThroughputHook),
    sampler_seed=None,
    logger=dict(type=StepLoggerHook, interval=10),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=StepCheckpointHook, interval=500, max_keep=2),
    curves=dict(type=CurvesHook),
)
custom_hooks = []
log_processor = dict(type=StepLogProcessor, window_size=10)
visualizer = dict(type=Visualizer, vis_backends=[dict(type=LocalVisBackend), dict(type=TensorboardVisBackend)])
log_level = "INFO"

# None: the device and the strategy are chosen by what is there (--device, --strategy).
device = None
strategy = None
