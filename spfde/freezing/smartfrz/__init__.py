"""SmartFRZ's predictor of when a layer may be frozen: what it looks at, what it is, and how it is trained."""
