"""Language models judged on text: perplexity by document, and answers to prompts."""
