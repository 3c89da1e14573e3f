"""Tasks on time series: classes told apart by features of a wavelet bank."""
