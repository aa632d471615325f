"""The step engine: rows join and leave a batch between two denoising steps. Knows neither Ray nor HTTP."""
