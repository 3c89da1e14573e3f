"""Any Hugging Face model, judged without data."""
