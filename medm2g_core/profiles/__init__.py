"""Sizes and budgets: what a configuration is (`config`), and the ready-made ones (`ready`)."""

from medm2g_core.profiles.config import (
    BASE_STAGES,
    FLOW_STAGES,
    REPORT_STAGE,
    ROUND_STAGES,
    STAGES,
    AlignmentConfig,
    ConditioningConfig,
    DataConfig,
    FlowConfig,
    ImageCodecConfig,
    Objective,
    Profile,
    ReportConfig,
    StageConfig,
    TextCodecConfig,
)
from medm2g_core.profiles.ready import PROFILES, profile

__all__ = [
    "BASE_STAGES",
    "FLOW_STAGES",
    "PROFILES",
    "REPORT_STAGE",
    "ROUND_STAGES",
    "STAGES",
    "AlignmentConfig",
    "ConditioningConfig",
    "DataConfig",
    "FlowConfig",
    "ImageCodecConfig",
    "Objective",
    "Profile",
    "ReportConfig",
    "StageConfig",
    "TextCodecConfig",
    "profile",
]
