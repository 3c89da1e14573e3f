"""Methods on classifiers of time series."""
