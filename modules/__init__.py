"""LightningModules: what is trained."""

from synthalign.modules.dpo import DPOModule as DPOModule
