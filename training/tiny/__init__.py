"""How the embedded model `tiny` and its calibration data are made. Not part of the wheel."""
