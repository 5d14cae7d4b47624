"""LightningDataModules: what is trained on."""

from synthalign.datamodules.preferences import SyntheticPreferenceDataModule as SyntheticPreferenceDataModule
