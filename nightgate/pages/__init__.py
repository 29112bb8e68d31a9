"""Pages of the history: a pipeline's nights, or all pipelines, each as one HTML file with its data inside."""
